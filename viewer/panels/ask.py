"""Questions in words: prompts in their colours, what they must not be, and what lights up."""

from __future__ import annotations

from typing import Any

from featuresplat import teachers
from featuresplat.controls import Button, Check, Choice, Group, Note, Panel, Ramp, Slider, Swatches, Text
from featuresplat.errors import FeaturesplatError

from ..document import checked_phrase
from ..markup import shortened

AUTO = "The last one that answers text"
HISTORY = 20
NOTHING = "-"
LISTED = 48
"""Characters of a prompt in the list of what matches."""


def panel(app: Any) -> Panel:
    return Panel(
        "Ask",
        [
            Text("Look for", lambda s: ", ".join(p.text for p in s.state.prompts), ask,
                 hint="What to look for, e.g. a red mug. Commas make several questions, each in its colour"),
            Note("Type what to look for, such as a red mug. Commas make several questions, each in its colour.",
                 when=lambda s: not _asked(s) and bool(s.scene.fields)),
            Choice("Earlier questions", lambda s: (NOTHING, *s.history), get=lambda s: NOTHING, set=_again,
                   when=lambda s: bool(s.history)),
            Text("But not", lambda s: ", ".join(s.state.negatives), _not, hint="What it must not be, e.g. a table"),
            Swatches(lambda s: [(p.color, p.text) for p in s.state.prompts], when=_asked),
            Choice("Heat map", _names, get=_shown, set=_show, when=_asked),
            Ramp(lambda s: ("0 no match", "1 match"),
                 when=lambda s: _asked(s) and s.look.kind == "relevancy" and s.look.prompt >= 0),
            Check("Own threshold", lambda s: s.state.threshold is not None, _own, when=_asked,
                  hint="Off: the field's own rule decides what is a match"),
            Slider("Threshold", 0.0, 1.0, 0.01, lambda s: 0.5 if s.state.threshold is None else s.state.threshold,
                   _threshold, when=_asked, enabled=lambda s: s.state.threshold is not None),
            Note(_matches, when=_asked),
            Button("Select what matches", select, icon="click", color="blue", when=_asked),
            Button("Back to colours", clear, icon="x", when=_asked),
            Group("Fields", [
                Choice("Ask", lambda s: (AUTO, *s.scene.fields), get=lambda s: s.state.field or AUTO, set=_field,
                       when=lambda s: len(s.scene.fields) > 1),
                Note(_about),
            ], open=not app.document.scene.fields),
        ],
        icon="message-question",
        order=20,
    )  # fmt: skip


def ask(s: Any, text: str) -> None:
    """Ask the phrases of a line, separated by commas, and show what lights up."""
    phrases = [p for p in text.split(",") if p.strip()]
    if not phrases:
        s.document.ask([])
        if s.look.kind == "relevancy":
            s.show(kind="rgb")
        return

    def work() -> None:
        before = s.state
        state = s.document.ask(phrases)
        try:
            s.app.insight.scores(state)
        except FeaturesplatError:
            s.document.ask([p.text for p in before.prompts])
            raise
        _remember(s, ", ".join(p.text for p in state.prompts))
        s.show(kind="relevancy", prompt=0 if len(state.prompts) == 1 else -1)

    for phrase in phrases:
        checked_phrase(phrase)
    s.work("Asking", work)


def select(s: Any) -> None:
    """Make what matches any prompt the selection."""

    def work() -> None:
        scores = s.app.insight.scores(s.state)
        if scores is None:
            raise FeaturesplatError("select: nothing is asked yet.", "Type what to look for first.")
        chosen = scores.masks if s.look.prompt < 0 else scores.masks[s.look.prompt : s.look.prompt + 1]
        mask = chosen.any(dim=0)
        if not bool(mask.any()):
            raise FeaturesplatError("select: nothing matches.", "Lower the threshold, or ask in other words.")
        s.pointer.forget_points()
        s.document.select(mask)
        s.show(kind="rgb")

    s.work("Selecting", work)


def clear(s: Any) -> None:
    """Forget the prompts."""
    s.document.ask([], negatives=[])
    s.show(kind="rgb", prompt=-1)


def _again(s: Any, text: str) -> None:
    if text != NOTHING:
        ask(s, text)


def _remember(s: Any, text: str) -> None:
    # What was typed on the way to a longer phrase is no question of its own.
    s.history = [text, *(h for h in s.history if h != text and not text.startswith(h))][:HISTORY]


def _not(s: Any, text: str) -> None:
    s.document.ask([p.text for p in s.state.prompts], negatives=text.split(","))


def _asked(s: Any) -> bool:
    return bool(s.state.prompts)


def _names(s: Any) -> tuple[str, ...]:
    return ("Off", "All, in their colours", *(f"{i + 1}: {p.text}" for i, p in enumerate(s.state.prompts)))


def _shown(s: Any) -> str:
    names = _names(s)
    if s.look.kind != "relevancy":
        return names[0]
    return names[s.look.prompt + 2] if -1 <= s.look.prompt < len(names) - 2 else names[1]


def _show(s: Any, name: str) -> None:
    place = _names(s).index(name) - 2 if name in _names(s) else -2
    s.show(kind="rgb") if place == -2 else s.show(kind="relevancy", prompt=place)


def _own(s: Any, on: bool) -> None:
    _threshold(s, 0.5 if on else None)


def _threshold(s: Any, value: float | None) -> None:
    state = s.document.change(threshold=value)
    if s.app.insight.known_question(state):
        s.app.insight.scores(state)  # only the cut is new: quick, and the counts are there when they are shown


def _matches(s: Any) -> str:
    scores = s.app.insight.known_scores(s.state)
    if scores is None:
        return ""
    lines = [
        f"{shortened(p.text, LISTED)}: {int(m.sum()):,} Gaussians match, best {float(v.max()) if len(v) else 0:.2f}"
        for p, m, v in zip(s.state.prompts, scores.masks, scores.values, strict=True)
    ]
    return "\n".join(lines)


def _field(s: Any, name: str) -> None:
    s.document.change(field="" if name == AUTO else name)


def _about(s: Any) -> str:
    if not s.scene.fields:
        return (
            "This scene has no feature field, so it cannot be asked in words. Add one: featuresplat distill RUN "
            "--teacher offline. Pointing works without."
        )
    return "\n\n".join(about(s.app, name, field) for name, field in s.scene.fields.items())


def about(app: Any, name: str, field: Any) -> str:
    """What a field is, and what its teacher says it can do, as soon as that is known."""
    facts = f"{name}: {field.dim} channels"
    if field.teacher:
        facts += f" of the teacher {field.teacher}"
    return f"{facts}. {_words(app, field.teacher, str(field.info.get('teacher', {})), field)}"


_said: dict[tuple[str, str], str] = {}
_asked_for: set[tuple[str, str]] = set()


def _words(app: Any, teacher: str, settings: str, field: Any) -> str:
    """What the teacher says of itself; asked for once, and behind the panels' back, because some load something to
    answer.
    """
    if field.text is not None and len(field.text.phrases):
        phrases = ", ".join(field.text.phrases[:12])
        more = f" and {len(field.text.phrases) - 12} more" if len(field.text.phrases) > 12 else ""
        return f"Answers to: {phrases}{more}."
    key = (teacher, settings)

    def find() -> None:
        try:
            _said[key] = teachers.text_side(teacher, field.info.get("teacher", {})).about
        except FeaturesplatError as error:
            _said[key] = f"{error.message[:1].upper()}{error.message[1:]}. {error.hint}"
        except Exception as error:  # a teacher from outside may fail in any way; the panel goes on
            _said[key] = f"Its teacher cannot be asked here ({type(error).__name__})."
        for session in app.sessions:
            session.refresh()

    if key not in _asked_for:
        _asked_for.add(key)
        app.behind("teacher's words", find)
    return _said.get(key, "")
