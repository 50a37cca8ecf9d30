"""The source of a run's soft labels, found before anything is written: files, a trained head, or an encoder."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

from accelerate import Accelerator

from nanonet.config.settings import StageSettings
from nanonet.data.classes import check_class_map, match_classes, read_class_map, rename_classes
from nanonet.data.lines import Limits
from nanonet.data.pairs import check_one_kind
from nanonet.data.prepare import RunData, RunTexts
from nanonet.data.soft_label_files import SoftLabelFiles, read_soft_labels
from nanonet.errors import InputError
from nanonet.inference.classifier import Classifier
from nanonet.models.checks import check_encoder
from nanonet.models.load import find_model
from nanonet.models.pooling import pooling_of
from nanonet.progress import Progress
from nanonet.teacher import cache
from nanonet.teacher.encoder import Encoder
from nanonet.teacher.head import find_head
from nanonet.teacher.selection import check_labels
from nanonet.teacher.source import EncoderSource, Source, file_source, head_source
from nanonet.training.launch import processes_of
from nanonet.training.pretrained import TEACHER, Pretrained, load_pretrained


@dataclasses.dataclass(frozen=True, eq=False)
class KnownClasses:
    """What knows the classes without labels: files of soft labels, a trained classifier, or nothing. names: as the
    data should call them"""

    names: list[str]
    files: SoftLabelFiles | None = None
    classifier: Classifier | None = None


def find_known_classes(settings: StageSettings, files: SoftLabelFiles | None) -> tuple[KnownClasses, StageSettings]:
    """What makes the soft labels without a label, if the user gives it, and the settings that follow from it.

    files: soft labels that are in memory already

    Raises:
        InputError: a damaged file or model, or settings that do not go with it.
    """
    wanted, name = settings.soft_labels, settings.general.encoder
    if wanted.soft_labels:
        limits = Limits(settings.data.max_text_bytes, settings.data.max_data_bytes)
        files = files or read_soft_labels(wanted, settings.data.text_column, limits)
        known = KnownClasses(files.classes, files=files)
    elif classifier := find_head(name, settings.teacher):
        if settings.loss.relation_weight:
            raise InputError(
                f"--relation-weight {settings.loss.relation_weight}: it compares with embeddings, and --teacher {name}"
                " gives the logits of its head; give 0, or --targets self_training"
            )
        class_map, what = read_class_map(wanted.class_map), f"{TEACHER} {name}"
        check_class_map(class_map, classifier.classes, wanted.class_map)
        known = KnownClasses(rename_classes(classifier.classes, class_map, what), classifier=classifier)
    elif wanted.class_map:
        raise InputError(f"--class-map {wanted.class_map}: --teacher {name} has no classes to rename; leave it out")
    else:
        return KnownClasses([]), settings
    # nothing is tuned
    return known, dataclasses.replace(settings, teacher=dataclasses.replace(settings.teacher, max_steps=0))


def make_source(
    settings: StageSettings,
    accelerator: Accelerator,
    known: KnownClasses,
    texts: RunTexts,
    students: Pretrained,
    data: RunData,
    progress: Progress,
) -> Source:
    """The source of the soft labels.

    students, data: what they start from, which may be the teacher's encoder as well,
    and all rows in its tokens.

    Raises:
        InputError: other classes than the data's, or an encoder or labels that will not do.
    """
    if known.files:
        return file_source(known.files, texts, settings.teacher)
    # the tuning of the teacher has no gradient scaler, which float16 would need
    autocast = nullcontext if settings.general.precision == "float16" else accelerator.autocast
    name, device, processes = settings.general.encoder, accelerator.device, processes_of(accelerator)
    if known.classifier:
        further = ", or use its encoder alone by --targets self_training"
        order = match_classes(texts.classes, known.names, f"{TEACHER} {name}", further)
        _check_kind(known.classifier, texts, name)
        teacher = Pretrained(TEACHER, name, known.classifier.tokenizer, known.classifier.model)
        pad_id = teacher.tokenizer.pad_token_id
        encoder = Encoder(teacher.model, "head", pad_id, device, autocast=autocast, processes=processes)
        data = teacher.tokenise(texts, settings.data.max_tokens)
        return head_source(order, encoder, data, settings.teacher, progress, name)
    teacher = students
    if students.flag != TEACHER:
        teacher = load_pretrained(name, TEACHER)
        data = teacher.tokenise(texts, settings.data.max_tokens)
    check_encoder(teacher.model, layers=settings.teacher.tuned)
    check_labels(data.label)
    pooling = pooling_of(*find_model(name))
    pad_id, tuning = teacher.tokenizer.pad_token_id, settings.teacher.teacher_tuning
    encoder = Encoder(teacher.model, pooling, pad_id, device, tuning, autocast, processes)
    key = cache.fingerprint(settings.teacher, data.rows, data.label, teacher.model, pooling)
    return EncoderSource(name, key, encoder, teacher.tokenizer, data)


def _check_kind(classifier: Classifier, texts: RunTexts, name: str) -> None:
    """Refuse a head that is known to read the other kind of texts; of a classifier from elsewhere nobody knows.

    Raises:
        InputError: says what it was trained on.
    """
    ours = classifier.pairs or classifier.model.config.model_type.startswith("nanonet_")
    if ours and check_one_kind(texts.rows.texts) != classifier.pairs:
        what = f"{TEACHER} {name} was trained on"
        if classifier.pairs:
            raise InputError(f"{what} pairs of texts: give both columns, such as --text-column premise,hypothesis")
        raise InputError(f"{what} single texts: give one column as --text-column, or a teacher of pairs")
