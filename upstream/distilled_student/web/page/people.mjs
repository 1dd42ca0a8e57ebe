// The enrolled people: kept in the page, and saved as files.

import { fileName, toPerson } from "./profiles.mjs";
import { button, element } from "./view.mjs";

export class People {
  /** list: the element that shows them; onchange: called after each change; onproblem: called with an Error. */
  constructor(list, onchange, onproblem) {
    Object.assign(this, { list, onchange, onproblem });
    this.profiles = new Map();
    this.rows = new Map();
  }

  names() {
    return [...this.profiles.keys()];
  }

  /** What decisions need of each. */
  persons() {
    return [...this.profiles.values()].map(toPerson);
  }

  find(name) {
    return this.profiles.get(name) ?? null;
  }

  add(profile) {
    this.remove(profile.name);
    this.profiles.set(profile.name, profile);
    const row = this.row(profile);
    this.rows.set(profile.name, row);
    this.list.append(row);
    this.changed();
  }

  remove(name) {
    this.rows.get(name)?.remove();
    this.rows.delete(name);
    if (this.profiles.delete(name)) this.changed();
  }

  changed() {
    document.getElementById("nobody").hidden = this.profiles.size > 0;
    this.onchange();
  }

  async save(profile) {
    try {
      const link = element("a");
      link.download = await fileName(profile.name);
      link.href = URL.createObjectURL(new Blob([JSON.stringify(profile) + "\n"], { type: "application/json" }));
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    } catch {
      this.onproblem(new Error("Profiles can be saved only on a page that was opened by https or on localhost."));
    }
  }

  row(profile) {
    const row = element("li", "person");
    const name = element("span", "name", `${profile.name} `);
    name.append(element("small", "", `${profile.count} clips`));
    const actions = element("span", "actions");
    actions.append(
      button("Save", `Save the profile of ${profile.name}`, () => this.save(profile)),
      button("Forget", `Forget ${profile.name}`, () => this.remove(profile.name)),
    );
    const bar = element("div", "bar");
    bar.append(element("div"));
    row.append(name, actions, bar);
    return row;
  }

  /** Show how likely each person is to speak; null: nobody speaks. */
  show(speaker) {
    for (const [name, row] of this.rows) {
      const ratio = speaker?.ratios[name];
      row.style.setProperty("--score", ratio === undefined ? 0 : (1 / (1 + Math.exp(-ratio))).toFixed(3));
    }
  }
}
