// What was loaded from files: people, words of one's own, and the calibration of a household.

import { parseSaved } from "./saved_files.mjs";
import { button, element, wordTile } from "./view.mjs";

export class Saved {
  /** lists: the elements {loaded, words}; onchange: called after each change; onproblem: called with an Error. */
  constructor(lists, model, people, onchange, onproblem) {
    Object.assign(this, { lists, model, people, onchange, onproblem });
    this.words = new Map(); // name -> {word, tile, row}
    this.household = null; // {offset, people, clips, row}
  }

  /** What the worker needs. */
  values() {
    return { offset: this.household?.offset ?? 0, words: [...this.words.values()].map(({ word }) => word) };
  }

  async load(file) {
    try {
      const { person, word, household } = parseSaved(await file.text(), this.model);
      if (person) this.people.add(person);
      if (word) this.addWord(word);
      if (household) this.setHousehold(household);
    } catch (error) {
      this.onproblem(new Error(`${file.name}: ${error.message}`));
    }
  }

  addWord(word) {
    this.removeWord(word.name);
    const tile = wordTile(word.name);
    tile.setThreshold(this.model.detector.word_threshold ?? 0.5);
    this.lists.words.append(tile.element);
    const row = this.row(word.name, `${word.clips} recordings`, () => this.removeWord(word.name));
    this.words.set(word.name, { word, tile, row });
    this.onchange();
  }

  removeWord(name) {
    const found = this.words.get(name);
    if (!found) return;
    found.tile.element.remove();
    found.row.remove();
    this.words.delete(name);
    this.onchange();
  }

  /** null: the model's own calibration is used again. */
  setHousehold(household) {
    this.household?.row.remove();
    this.household = household && {
      ...household,
      row: this.row("Household", `${household.people} people, ${household.clips} clips`, () => this.setHousehold(null)),
    };
    this.onchange();
  }

  row(title, note, forget) {
    const row = element("li", "person");
    const name = element("span", "name", `${title} `);
    name.append(element("small", "", note));
    const actions = element("span", "actions");
    actions.append(button("Forget", `Forget ${title}`, forget));
    row.append(name, actions);
    this.lists.loaded.append(row);
    return row;
  }

  /** Show the scores of the words, by name. */
  show(scores) {
    for (const [name, { tile }] of this.words) tile.show(Object.hasOwn(scores, name) ? scores[name] : 0);
  }

  /** The tile of a word; undefined if there is none of this name. */
  tile(name) {
    return this.words.get(name)?.tile;
  }
}
