"""A store gives back what was committed, all or nothing, and lets one leader write at a time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from scheduler.adapters.retention import NEWEST, WORTH
from scheduler.adapters.tables import COLUMNS
from scheduler.errors import FairTierError, Refused
from scheduler.ports import Fenced
from scheduler.requests import Answer
from tests.contract import world as w
from tests.contract.world import DAY_MS, NOW_MS, batch, command, sessions

if TYPE_CHECKING:
    from scheduler.ports import Row, Store
    from tests.contract.world import World


def _lines(count: int, first: int = 1) -> list[str]:
    return [json.dumps({"event": number}) for number in range(first, first + count)]


# -- rows --------------------------------------------------------------------------------------------------------------


def test_the_rows_of_this_suite_fill_every_column() -> None:
    for name, row in (
        ("sessions", w.SESSION),
        ("users", w.USER),
        ("hosts", w.HOST),
        ("tasks", w.TASK),
        ("appeals", w.APPEAL),
        ("decisions", w.DECISION),
        ("commands", w.COMMAND),
        ("policy_versions", w.POLICY),
    ):
        assert set(row) == set(COLUMNS[name])


def test_every_field_comes_back_with_value_and_type(store: Store) -> None:
    store.commit(
        batch(
            sessions={"s-1": w.SESSION},
            users={"ann": w.USER},
            hosts={"h1": w.HOST},
            tasks={"t-1": w.TASK},
            appeals={"a-1": w.APPEAL},
            decisions=[w.DECISION],
            commands=[w.COMMAND],
            policies=[w.POLICY],
        )
    )
    read: list[tuple[Row | None, Row]] = [
        (store.session("s-1"), w.SESSION),
        (store.users()[0], w.USER),
        (store.hosts()[0], w.HOST),
        (store.tasks()[0], w.TASK),
        (store.appeals()[0], w.APPEAL),
        (store.decisions()[0], {"seq": 1} | w.DECISION),
        (store.outbox()[0], {"seq": 1} | w.COMMAND),
        (store.policies()[0], w.POLICY),
    ]
    for row, written in read:
        assert row == written
        assert [type(row[name]) for name in written] == [type(value) for value in written.values()]


def test_policy_versions_are_appended_and_decisions_counted_by_them(store: Store) -> None:
    """In order of their number; one that is on record already is refused, and nothing of its batch written."""
    store.commit(batch(policies=[w.POLICY | {"version": number} for number in (1, 2)]))
    decided = [w.DECISION | {"policy_version": version} for version in (None, 1, 2, 2)]
    store.commit(batch(decisions=decided, policies=[w.POLICY | {"version": 10}]))
    assert [row["version"] for row in store.policies()] == [1, 2, 10]
    assert store.decisions_by_version() == {1: 1, 2: 2}
    with pytest.raises(FairTierError):
        store.commit(batch(lines=_lines(1), policies=[w.POLICY | {"version": 2}]))
    assert (len(store.policies()), store.last_seq()) == (3, 0)


def test_the_record_is_read_from_the_checkpoint_before_an_instant(store: Store) -> None:
    """The newest at or before it; the oldest where all are later; with every line after it."""
    for number, at_ms in enumerate((NOW_MS, NOW_MS + 1_000, NOW_MS + 2_000), start=1):
        store.commit(batch(now_ms=at_ms, lines=_lines(1, number), checkpoint=f"head {number}"))
    store.commit(batch(lines=_lines(1, 4)))

    def found(since_ms: int) -> tuple[str | None, list[int]]:
        past = store.recorded(since_ms)
        return past.head, [seq for seq, _ in past.lines]

    assert found(NOW_MS + 1_500) == ("head 2", [3, 4])
    assert found(NOW_MS + 1_000) == ("head 2", [3, 4])
    assert found(0) == ("head 1", [2, 3, 4])
    assert found(NOW_MS * 2) == ("head 3", [4])


def test_appeals_by_user_and_state_oldest_first(store: Store) -> None:
    """Of the same instant in the order of the numbers that their names end in."""
    made = [("a-10", "ann", "open"), ("a-9", "ann", "denied"), ("a-11", "bob", "open")]
    rows = {name: w.APPEAL | {"appeal": name, "user": user, "state": state} for name, user, state in made}
    store.commit(batch(appeals=rows))
    assert [row["appeal"] for row in store.appeals()] == ["a-9", "a-10", "a-11"]
    assert [row["appeal"] for row in store.appeals(user="ann")] == ["a-9", "a-10"]
    assert [row["appeal"] for row in store.appeals(states=["open"])] == ["a-10", "a-11"]
    assert [row["appeal"] for row in store.appeals(user="ann", states=["open"])] == ["a-10"]
    store.commit(batch(appeals={"a-10": rows["a-10"] | {"state": "granted"}}))
    assert [row["appeal"] for row in store.appeals(states=["open"])] == ["a-11"]


def test_unknown_stays_none(store: Store) -> None:
    unknown = dict.fromkeys(("outcome", "gpu_type", "memory_mib", "started_ms", "allocation", "load", "exit_code"))
    store.commit(batch(sessions=sessions("s-1", **unknown)))
    row = store.session("s-1")
    assert row is not None
    assert all(row[name] is None for name in unknown)


def test_columns_that_may_be_left_out_get_their_default(store: Store) -> None:
    given = ("session", "user", "group", "tier", "state", "ladder", "gpus", "fraction_m", "submitted_ms")
    store.commit(batch(sessions={"s-1": {name: w.SESSION[name] for name in given}}))
    row = store.session("s-1")
    assert row is not None
    assert (row["busy_ms"], row["error"], row["argv"], row["notebook"], row["load"]) == (0, "", "[]", False, None)


def test_a_row_is_overwritten_whole(store: Store) -> None:
    store.commit(batch(sessions={"s-1": w.SESSION}, users={"ann": w.USER}, hosts={"h1": w.HOST}, tasks={"t-1": w.TASK}))
    bare = {name: value for name, value in w.SESSION.items() if name not in ("load", "exit_code", "error")}
    store.commit(batch(sessions={"s-1": bare | {"state": "running"}}, users={"ann": w.USER | {"mail": None}}))
    assert store.session("s-1") == w.SESSION | {"state": "running", "load": None, "exit_code": None, "error": ""}
    assert store.users() == [w.USER | {"mail": None}]
    assert len(store.sessions()) == 1


@pytest.mark.parametrize("row", [{"session": "s-1"}, w.SESSION | {"colour": "red"}])
def test_a_row_that_does_not_fit_is_refused_and_nothing_written(store: Store, row: Row) -> None:
    with pytest.raises(ValueError, match="a row of sessions: missing"):
        store.commit(batch(lines=_lines(1), users={"ann": w.USER}, sessions={"s-1": row}))
    assert (store.users(), store.last_seq()) == ([], 0)
    store.commit(batch(users={"ann": w.USER}))
    assert len(store.users()) == 1


def test_what_is_handed_in_or_out_is_not_shared(store: Store) -> None:
    row = dict(w.SESSION)
    store.commit(batch(sessions={"s-1": row}))
    row["state"] = "lost"
    read = store.session("s-1")
    assert read is not None
    read["state"] = "found"
    store.sessions()[0]["state"] = "found"
    assert store.session("s-1") == w.SESSION


def test_sessions_by_state_user_and_time(store: Store) -> None:
    store.commit(
        batch(
            sessions=sessions("s-10", "s-9", state="queued", ended_ms=None, submitted_ms=5)
            | sessions("s-2", user="bob", ended_ms=100, submitted_ms=1)
            | sessions("s-3", ended_ms=200, submitted_ms=2)
        )
    )

    def names(**which: Any) -> list[str]:
        return [row["session"] for row in store.sessions(**which)]

    assert names() == ["s-2", "s-3", "s-9", "s-10"]
    assert names(states=["queued", "running"]) == ["s-9", "s-10"]
    assert names(user="bob") == ["s-2"]
    assert names(user="bob", states=["queued"]) == []
    assert names(since_ms=101) == ["s-3", "s-9", "s-10"]
    assert names(since_ms=200) == ["s-3", "s-9", "s-10"]
    assert names(limit=3) == ["s-3", "s-9", "s-10"]
    assert names(limit=0) == []
    assert store.session("s-4") is None


def test_decisions_by_session_user_and_time(store: Store) -> None:
    given = [("s-1", "ann", 1), ("s-2", "bob", 2), ("s-1", "ann", 3)]
    store.commit(batch(decisions=[w.DECISION | {"session": s, "user": u, "at_ms": at} for s, u, at in given]))
    store.commit(batch(decisions=[w.DECISION | {"session": "s-2", "user": "bob", "at_ms": 3}]))

    def at(**which: Any) -> list[int]:
        return [row["seq"] for row in store.decisions(**which)]

    assert at() == [1, 2, 3, 4]
    assert at(session="s-1") == [1, 3]
    assert at(user="bob") == [2, 4]
    assert at(since_ms=3) == [3, 4]
    assert at(limit=2) == [3, 4]
    assert at(user="bob", limit=1) == [4]


def test_lists_are_in_order(store: Store) -> None:
    store.commit(
        batch(
            users={name: w.USER | {"user": name} for name in ("zoe", "ann", "bob")},
            hosts={name: w.HOST | {"host": name} for name in ("h2", "h1")},
            tasks={
                name: w.TASK | {"task": name, "created_ms": at, "state": state}
                for name, at, state in (("t-10", 2, "queued"), ("t-9", 2, "queued"), ("t-11", 1, "done"))
            },
        )
    )
    assert [row["user"] for row in store.users()] == ["ann", "bob", "zoe"]
    assert [row["host"] for row in store.hosts()] == ["h1", "h2"]
    assert [row["task"] for row in store.tasks()] == ["t-11", "t-9", "t-10"]
    assert [row["task"] for row in store.tasks(states=["queued"])] == ["t-9", "t-10"]


# -- answers, cursors, outbox ------------------------------------------------------------------------------------------


def test_the_first_answer_is_the_answer(store: Store) -> None:
    first = Answer(key="key-0001", body={"session": "s-1", "n": [1, None]})
    store.commit(batch(answers=[first, Answer(key="key-0002", error="refused", message="no", hint="wait")]))
    store.commit(batch(answers=[Answer(key="key-0001", error="failed", message="late")]))
    assert store.answer("key-0001") == first
    assert store.answer("key-0002") == Answer(key="key-0002", error="refused", message="no", hint="wait")
    assert store.answer("key-0003") is None


def test_cursors_move_each_for_itself(store: Store) -> None:
    store.commit(batch(cursors={"ft:inbox": "1-0", "ft:tele:h1": "5-0"}))
    store.commit(batch(cursors={"ft:inbox": "2-0"}))
    assert store.cursors() == {"ft:inbox": "2-0", "ft:tele:h1": "5-0"}


def test_the_outbox_keeps_order_and_forgets_what_is_settled(store: Store) -> None:
    store.commit(batch(commands=[command("b"), command("a"), command("c")]))
    store.commit(batch(commands=[command("a", host="other"), command("d")], settled=[("b", "done", "")]))
    assert [(row["action"], row["host"]) for row in store.outbox()] == [("a", "h1"), ("c", "h1"), ("d", "h1")]
    store.commit(batch(commands=[command("b")], settled=[("unknown", "done", "")]))
    assert [row["action"] for row in store.outbox()] == ["a", "c", "d"]


def test_a_command_may_be_settled_in_the_batch_that_issues_it(store: Store) -> None:
    store.commit(batch(commands=[command("a")], settled=[("a", "expired", "too late")]))
    assert store.outbox() == []


# -- journal -----------------------------------------------------------------------------------------------------------


def test_an_empty_store_has_no_past(store: Store) -> None:
    past = store.past()
    assert (past.seq, past.head, list(past.lines)) == (0, None, [])
    assert (store.last_seq(), list(store.journal())) == (0, [])


def test_lines_are_numbered_on(store: Store) -> None:
    store.commit(batch(lines=["a", "b"]))
    store.commit(batch())
    store.commit(batch(lines=["c"]))
    past = store.past()
    assert (past.seq, past.head, list(past.lines)) == (0, None, [(1, "a"), (2, "b"), (3, "c")])
    assert store.last_seq() == 3


def test_the_past_begins_at_the_newest_checkpoint(store: Store) -> None:
    store.commit(batch(checkpoint="head 0"))
    store.commit(batch(lines=["a", "b"], checkpoint="head 2"))
    store.commit(batch(lines=["c"]))
    past = store.past()
    assert (past.seq, past.head, list(past.lines)) == (2, "head 2", [(3, "c")])
    assert list(store.journal()) == ["head 0", "a", "b", "c"]


def test_a_checkpoint_may_be_made_again_at_the_same_line(store: Store) -> None:
    store.commit(batch(checkpoint="head"))
    store.commit(batch(checkpoint="another policy"))
    assert store.past().head == "another policy"


def test_who_is_nearly_up_to_date_gets_lines_only(store: Store) -> None:
    store.commit(batch(checkpoint="head 0"))
    store.commit(batch(lines=["a", "b"], checkpoint="head 2"))
    store.commit(batch(lines=["c"]))
    for after, lines in ((0, "abc"), (1, "bc"), (3, "")):
        past = store.past(after)
        assert (past.seq, past.head, "".join(line for _, line in past.lines)) == (after, None, lines)
    assert store.past(4).head == "head 2", "a number of the future is of another database"


def test_who_is_far_behind_gets_the_checkpoint(store: Store) -> None:
    store.commit(batch(lines=_lines(WORTH + 1), checkpoint="head"))
    assert store.past(0).head == "head"
    assert store.past(1).head is None


def test_a_long_journal_is_read_whole(store: Store) -> None:
    store.commit(batch(checkpoint="head"))
    store.commit(batch(lines=_lines(2_500)))
    assert list(store.journal()) == ["head", *_lines(2_500)]


def test_of_old_checkpoints_one_a_day_stays(store: Store) -> None:
    day = NOW_MS // DAY_MS * DAY_MS
    for number in range(1, 21):
        store.commit(batch(now_ms=day + number * DAY_MS // 5, lines=["x"], checkpoint=f"head {number}"))
    store.prune(0)
    assert next(iter(store.journal())) == "head 1"
    assert store.prune(day + DAY_MS + DAY_MS // 5) == 5, "cut at the first checkpoint of the second day"
    assert list(store.journal()) == ["head 5", *["x"] * 15]
    assert store.prune(day + 100 * DAY_MS) == 15
    assert list(store.journal()) == ["head 20"]


def test_newest_checkpoints_stay_until_the_journal_is_cut(store: Store) -> None:
    for number in range(1, NEWEST + 3):
        store.commit(batch(lines=["x"], checkpoint=f"head {number}"))
    store.commit(batch(lines=["y"]))
    assert list(store.journal()) == ["head 1", *["x"] * (NEWEST + 1), "y"]


def test_lines_go_on_after_everything_was_pruned(store: Store) -> None:
    store.commit(batch(lines=["a", "b"], checkpoint="head"))
    assert store.prune(NOW_MS) == 2
    assert store.last_seq() == 2
    store.commit(batch(lines=["c"]))
    assert list(store.past().lines) == [(3, "c")]
    assert store.past(1).head == "head", "line 2 is gone: from the checkpoint"


def test_pruning_keeps_what_is_needed(store: Store) -> None:
    store.commit(
        batch(
            lines=["a"],
            answers=[Answer(key="key-0001")],
            commands=[command("open", issued_ms=1), command("done", issued_ms=1), command("new")],
            settled=[("done", "done", ""), ("new", "done", "")],
            decisions=[w.DECISION],
            sessions={"s-1": w.SESSION},
        )
    )
    store.commit(batch(now_ms=NOW_MS + 1, answers=[Answer(key="key-0002")]))
    assert store.prune(NOW_MS) == 1, "the settled command of long ago; without a checkpoint no line"
    assert store.prune(NOW_MS + 1) == 2, "the first answer, and the other settled command"
    assert store.answer("key-0001") is None
    assert store.answer("key-0002") is not None
    assert [row["action"] for row in store.outbox()] == ["open"]
    assert list(store.past().lines) == [(1, "a")]
    assert len(store.decisions()) == len(store.sessions()) == 1


# -- one leader --------------------------------------------------------------------------------------------------------


def test_who_does_not_lead_writes_nothing(world: World) -> None:
    store = world.open()
    with pytest.raises(Fenced, match="another scheduler"):
        store.commit(batch(users={"ann": w.USER}))
    assert store.users() == []


def test_a_second_leader_is_refused_until_the_lease_lapses(world: World, store: Store) -> None:
    other = world.open()
    with pytest.raises(Refused, match=r"one leads here for another 15\.0 s; two may not yet"):
        other.lead("two")
    world.clock.now_ms += 10_000
    store.commit(batch(users={"ann": w.USER}))
    world.clock.now_ms += 14_999
    with pytest.raises(Refused, match=r"for another 0\.0 s"):
        other.lead("two")
    world.clock.now_ms += 1
    assert other.lead("two") == 2


def test_a_replaced_leader_is_fenced(world: World, store: Store) -> None:
    world.clock.now_ms += 15_000
    other = world.open()
    other.lead("two")
    with pytest.raises(Fenced):
        store.commit(batch(lines=["late"], users={"ann": w.USER}))
    with pytest.raises(Fenced):
        store.prune(NOW_MS)
    assert (store.users(), store.last_seq()) == ([], 0)
    other.commit(batch(lines=["new"]))
    assert store.last_seq() == 1


def test_the_same_holder_takes_over_at_once_and_fences_its_former_self(world: World, store: Store) -> None:
    again = world.open()
    assert again.lead("one") == 2
    with pytest.raises(Fenced):
        store.commit(batch())
    again.commit(batch(lines=["a"]))


def test_a_new_leader_continues_the_journal(world: World, store: Store) -> None:
    store.commit(batch(lines=["a", "b"]))
    again = world.open()
    again.lead("one")
    again.commit(batch(lines=["c"]))
    assert list(again.past().lines) == [(1, "a"), (2, "b"), (3, "c")]


def test_a_leader_that_closes_lets_the_next_one_in(world: World, store: Store) -> None:
    store.close()
    assert world.open().lead("two") == 2


def test_a_fenced_leader_that_closes_leaves_the_new_one_its_lease(world: World, store: Store) -> None:
    world.clock.now_ms += 15_000
    world.open().lead("two")
    store.close()
    with pytest.raises(Refused):
        world.open().lead("three")


def test_others_see_what_was_committed(world: World, store: Store) -> None:
    other = world.open()
    assert other.users() == []
    store.commit(batch(users={"ann": w.USER}, lines=["a"], cursors={"ft:inbox": "1-0"}, answers=[Answer(key="k")]))
    assert (other.users(), other.last_seq(), other.cursors()) == ([w.USER], 1, {"ft:inbox": "1-0"})
    assert other.answer("k") == Answer(key="k")
