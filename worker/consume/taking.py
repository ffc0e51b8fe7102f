"""Taking messages off their lists, in one step that also notes whatever is more than a hint.

kombu pops a message and notes it as taken afterwards: a worker that is killed in between takes it with it. Here the
server does both (docs/adr/0013). A note is kombu's own, so that any kombu restores it and any acknowledges it.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import orjson
import redis

from worker.broker.clock import BROKER_CLOCK
from worker.broker.hints import ASIDE_PREFIX, HINT_MARK, LONE_QUEUE, TASK, list_key
from worker.consume.foreign import MAX_MESSAGE_BYTES, Payload, read_foreign, read_fragments

# KEYS: the notes, their index, then the lists, those to be emptied first first. ARGV: how many, the time, the mark of
# a hint, the most bytes of a message, the beginning of delivery tags that are nobody else's, a pattern of what is ours,
# and the beginning of the keys of lists of what is not. Answers one string, two bytes a message (its list; whether it
# is noted, 2 where it is cut as well, 3 where it is not ours, too large to be read, and set aside whole), then the
# messages, then the tags of those that are noted. Having popped, it is let write also where memory is short (Redis
# refuses a script's first write only), and it must not fail: what it has popped is nowhere else.
_TAKE = """
local left, longest = tonumber(ARGV[1]), tonumber(ARGV[4])
local codes, taken, tags = {}, {}, {}
local function name(value, other)
    return cjson.encode(type(value) == 'string' and value or other)
end
local function note(tag, text)
    if type(tag) ~= 'string' or #tag > 255 or not string.find(tag, '^[%w_.:-]+$')
        or redis.call('HGET', KEYS[1], tag) then
        tag = ARGV[5] .. ':' .. #taken
    end
    redis.call('ZADD', KEYS[2], ARGV[2], tag)
    redis.call('HSET', KEYS[1], tag, text)
    tags[#tags + 1] = tag
end
for i = 3, #KEYS do
    if left < 1 then break end
    local found = redis.pcall('RPOP', KEYS[i], left)
    if type(found) == 'table' then
        if found.err then
            if #taken == 0 then return found end
            break
        end
        for _, raw in ipairs(found) do
            local is_noted = 0
            if #raw > longest and string.find(raw, '^%s*{') and not string.find(raw, ARGV[6]) then
                redis.call('LPUSH', ARGV[7] .. KEYS[i], raw)
                raw = ''
                is_noted = 3
            elseif #raw > longest then
                raw = string.sub(raw, 1, 8192) .. string.sub(raw, -65536)
                note(nil, raw)
                is_noted = 2
            elseif not string.find(raw, ARGV[3], 1, true) then
                local is_json, message = pcall(cjson.decode, raw)
                local headers = is_json and type(message) == 'table' and message.headers
                local properties = is_json and type(message) == 'table' and message.properties
                if type(properties) ~= 'table' then properties = {} end
                local info = type(properties.delivery_info) == 'table' and properties.delivery_info
                if info or (type(headers) == 'table' and headers.id ~= nil) then
                    info = info or {}
                    note(properties.delivery_tag, '[' .. raw .. ',' .. name(info.exchange, '') .. ','
                        .. name(info.routing_key, '') .. ']')
                    is_noted = 1
                end
            end
            left = left - 1
            taken[#taken + 1] = raw
            codes[#taken] = string.char(i - 3, is_noted)
        end
    end
end
table.insert(taken, 1, table.concat(codes))
for _, tag in ipairs(tags) do taken[#taken + 1] = tag end
return taken
"""
_OURS = r'"task"%s*:%s*"' + TASK.replace(".", "%.") + '"'  # as Lua writes patterns
_TOO_LARGE = "the message is larger than ANTREAN_MAX_MESSAGE_BYTES"
_NOTE = re.compile(rb'\[(.*),("(?:[^"\\]|\\.)*"),("(?:[^"\\]|\\.)*")\]', re.DOTALL)


class _Lay(NamedTuple):
    queue: str
    is_noted: bool
    raw: bytes


class Taken(_Lay):
    """One message as it lay in the broker. `is_noted`: it is kept there, under `tag`, until it is acknowledged.

    `key` is the list that it lay on. `is_cut`: it was too large, and only its beginning and its end are here.
    `is_aside`: it was too large, is not ours, and lies in the list of such as it is.
    """

    key: str = ""
    tag: str = ""
    is_cut: bool = False
    is_aside: bool = False


class Taker:
    """Takes messages for one channel."""

    def __init__(
        self, client: redis.Redis, *, notes: str, index: str, longest: int = MAX_MESSAGE_BYTES
    ) -> None:
        """`notes` and `index`: the keys of kombu's hash and sorted set of unacknowledged messages.

        `longest`: bytes of the largest message that is taken whole.
        """
        self._take = client.register_script(_TAKE)
        self._noted_in = (notes, index)
        self._longest = longest
        self._tags = uuid.uuid4().hex
        self._takes = 0

    def take(self, lists: Sequence[tuple[str, str]], count: int) -> list[Taken]:
        """At most `count` messages, from the first of the `lists` (queue, key; at most 255) on.

        Raises redis.RedisError; ReadOnlyError where the server takes no writes.
        """
        keys = [*self._noted_in, *(key for _, key in lists)]
        self._takes += 1
        args: list[Any] = [
            count,
            BROKER_CLOCK.now_s(),
            HINT_MARK,
            self._longest,
            f"{self._tags}:{self._takes}",
            _OURS,
            ASIDE_PREFIX,
        ]
        found: Any = self._take(keys=keys, args=args)
        codes = found[0]
        size = len(codes) // 2
        messages, tags = found[1 : size + 1], iter(found[size + 1 :])
        taken = []
        for i, raw in enumerate(messages):
            queue, key = lists[codes[2 * i]]
            one = Taken(queue, codes[2 * i + 1] in (1, 2), raw)
            one.key = key
            one.is_aside = codes[2 * i + 1] == 3
            if one.is_noted:
                one.tag = next(tags).decode("ascii")
                one.is_cut = codes[2 * i + 1] == 2
            taken.append(one)
        return taken


def read_taken(taken: Taken) -> Payload:
    """The message, if it is no hint, as kombu is to be handed it. Raises Unusable."""
    tag = taken.tag if taken.is_noted else str(uuid.uuid4())
    if taken.is_cut:
        return read_fragments(taken.raw, _TOO_LARGE, queue=taken.queue, tag=tag)
    payload = read_foreign(taken.raw, queue=taken.queue, tag=tag)
    if not taken.is_noted:
        payload.raw = taken.raw
    return payload


def write_note(raw: bytes, queue: str) -> bytes:
    """The note of a message that the broker has not made itself."""
    return b"[" + raw + b',"",' + orjson.dumps(queue) + b"]"


def read_note(note: bytes) -> tuple[bytes, str]:
    """The message of a note as it lay in the broker, and the queue it was for, "" where the note does not say.

    Not decoded: what is in it may be the very thing that ended its worker.
    """
    found = _NOTE.fullmatch(note)
    if found is None:
        return note, ""  # of a message that was cut
    try:
        return found.group(1), str(orjson.loads(found.group(3)))
    except orjson.JSONDecodeError:
        return found.group(1), ""


def find_list(message: bytes, queue: str, ours: Collection[str]) -> str:
    """The list to put a message back to that was noted for `queue`, or for one that is not of `ours`.

    kombu asks the exchange that the message names, and gives to nobody what names one that is not there.
    """
    try:
        priority = min(9, max(0, int(orjson.loads(message)["properties"]["priority"])))
    except (ValueError, TypeError, LookupError, ArithmeticError):
        priority = 0
    return list_key(queue if queue in ours else LONE_QUEUE, priority)
