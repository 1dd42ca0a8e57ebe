"""All patches of s3prl's source, by module, each with its reason and the number of places that it must match.

Written for s3prl 0.4.18. When s3prl repairs a fault, delete its line here; nothing else changes.
"""

from __future__ import annotations

from distilled_student.patches.finder import Patch, Table

HELPERS = "from distilled_student.host.superb.helpers import"
NO_LIBROSA = "librosa is not a dependency"
FIND_FILES = Patch(NO_LIBROSA, "from librosa.util import find_files", f"{HELPERS} find_files")
NO_GPU = "there may be no GPU, or several"

PATCHES: Table = {
    "s3prl.run_downstream": [
        Patch(
            "a resumed run that was copied or moved would write into its old folder",
            "            'device'\n        ]",
            "            'device', 'expdir'\n        ]",
        ),
        Patch(
            "a YAML file can name its base",
            "config = yaml.load(file, Loader=yaml.FullLoader)",
            "from distilled_student.host.early_checks import read_file; config = read_file(args)",
        ),
    ],
    # SUPERB's experts
    "s3prl.downstream.speech_commands.expert": [
        Patch(
            "catalyst is unmaintained and cannot be imported on Python 3.10 and newer",
            "from catalyst.data.sampler import",
            HELPERS,
        ),
    ],
    "s3prl.downstream.speech_commands.dataset": [
        Patch(
            "background noise shorter than a second made randint fail",
            "randint(0, len(wav) - 16000)",
            "randint(0, max(0, len(wav) - 16000))",
        ),
    ],
    "s3prl.downstream.sv_voxceleb1.dataset": [
        Patch("imported and never used; needs the sox binary", "from sox import Transformer\n", ""),
        Patch(
            NO_LIBROSA,
            "from librosa.util import find_files",
            f"{HELPERS} find_files, lengths_file\nfrom distilled_student.common.files import save_torch",
        ),
        Patch(
            "lengths were cached in s3prl's own folder, and those of one corpus were used for every other",
            "Path(os.path.dirname(__file__)) / '.wav_lengths' / f'{self.root_key[index]}_length.pt'",
            "lengths_file(self.roots[index])",
        ),
        Patch(
            "an interrupted write left half a cache file",
            "torch.save([wav_tags, wav_lengths], str(cache_path))",
            "save_torch([wav_tags, wav_lengths], cache_path)",
        ),
        Patch(
            "twelve processes on any machine; threads are enough, since the work is done outside Python",
            "Parallel(n_jobs=n_jobs)",
            "Parallel(n_jobs=-1, prefer='threads')",
        ),
    ],
    "s3prl.downstream.sv_voxceleb1.expert": [
        Patch(
            "VoxCeleb1 has no development list",
            "self.dev_dataset = SpeakerVerifi_test(**dev_config)",
            "self.dev_dataset = SpeakerVerifi_test(**dev_config) if dev_config['meta_data'] else None",
        ),
        Patch(NO_GPU, ".cuda()", ".to(features_pad.device)", places=2),
        Patch(
            "dev was scored on the trials of test",
            "trials = self.test_dataset.pair_table",
            "trials = getattr(self, f'{mode}_dataset').pair_table",
        ),
        Patch(
            "labels were never recorded: the file with the truth was empty",
            'zip(records["pair_names"], records["labels"])',
            'zip(records["pair_names"], labels)',
        ),
    ],
    "s3prl.downstream.audio_snips.expert": [Patch(NO_GPU, ".cuda()", ".to(features_pad.device)")],
    "s3prl.downstream.voxceleb1.dataset": [
        Patch(
            NO_LIBROSA, "from librosa.util import find_files", f"{HELPERS} list_file"
        ),  # find_files is not used there
        Patch(
            "the file list of one corpus was used for every other",
            "os.path.join(CACHE_PATH, f'{mode}.pkl')",
            "list_file(mode, file_path, meta_data)",
        ),
    ],
    # the typed recipes (SuperbKS, SuperbASV): `s3prl.problem` imports all of them at once
    "s3prl.dataio.corpus.iemocap": [FIND_FILES],
    "s3prl.dataio.dataset.diarization": [Patch("not used, and gone from Python 3.13", "import chunk\n", "")],
    "s3prl.dataio.dataset.load_audio": [
        Patch(NO_LIBROSA, "import librosa\n", f"{HELPERS} load_audio\n"),
        Patch(NO_LIBROSA, "librosa.load(", "load_audio("),
    ],
    "s3prl.metric.common": [
        Patch(
            "editdistance is not a dependency; torchaudio has the function",
            "import editdistance as ed",
            "from torchaudio.functional import edit_distance",
        ),
        Patch("as above", "ed.eval(", "edit_distance("),
    ],
    "s3prl.problem.common._hear_util": [FIND_FILES],
    "s3prl.task._hear_score": [
        Patch(
            "a package that only HEAR's recipes need",
            "import sed_eval\n",
            f"{HELPERS} optional\nsed_eval = optional('sed_eval')\n",
        ),
        Patch(
            "as above",
            "from dcase_util.containers import MetaDataContainer",
            "MetaDataContainer = optional('dcase_util.containers')",
        ),
    ],
    "s3prl.task.event_prediction": [
        Patch(
            "a package that only HEAR's recipes need",
            "import more_itertools\n",
            f"{HELPERS} optional\nmore_itertools = optional('more_itertools')\n",
        ),
    ],
    "s3prl.nn.upstream": [Patch("a single selected layer was refused", "== len(all_lens) > 1", "== len(all_lens)")],
    "s3prl.problem.base": [
        Patch(
            "values of the command line were evaluated as code",
            "from s3prl.util.override import",
            "from distilled_student.host.superb.recipes import",
        ),
    ],
    "s3prl.problem.asv.run": [
        Patch("--test_ckpt_dir is text and was used as a path", "append(test_ckpt_dir)", "append(Path(test_ckpt_dir))"),
    ],
    "s3prl.dataio.corpus.voxceleb1sv": [
        Patch(
            "two lists were downloaded; see the next two",
            "import _download\n",
            "import _download\nfrom distilled_student.host.superb.recipes import "
            "speaker_verification_files, speaker_verification_trials\n",
        ),
        Patch(
            "the list of files was downloaded; the recipe uses every file",
            "self.format_path(\n            self.dataset_root, download_dir, force_download\n        )",
            "speaker_verification_files(self.dataset_root)",
        ),
        Patch(
            "the trials were downloaded, even where the corpus has them",
            "self.format_test_trials(download_dir, force_download)",
            "speaker_verification_trials(self.dataset_root) or self.format_test_trials(download_dir, force_download)",
        ),
    ],
}


def _import_when_made(names: str) -> list[Patch]:
    """Import these names of transformers when a model is made, not with its module."""
    made, line = "        super().__init__()\n", f"from transformers import {names}\n"
    reason = "s3prl.hub imports the module: every training and evaluation waited for all of transformers"
    return [Patch(reason, line, ""), Patch("as above", made, f"{made}        {line}")]


# These change no results: s3prl may have imported the modules before.
SHORTCUTS: Table = {
    "s3prl.upstream.hf_hubert.expert": _import_when_made("HubertModel, Wav2Vec2FeatureExtractor"),
    "s3prl.upstream.hf_wav2vec2.expert": _import_when_made("Wav2Vec2FeatureExtractor, Wav2Vec2Model"),
}
