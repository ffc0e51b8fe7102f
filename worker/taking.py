"""Taking messages off their lists, in one step that also notes whatever is more than a hint.

kombu pops a message and notes it as taken afterwards: a worker that is killed in between takes it with it. Here the
server does both (docs/adr/0013). A note is kombu's own, so that any kombu restores it and any acknowledges it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import redis

from worker.broker_time import BROKER_CLOCK
from worker.hints import HINT_MARK

# KEYS: the notes, their index, then the lists, those to be emptied first first. ARGV: how many, the time, the mark of
# a hint. Answers one string, two bytes a message (its list; whether it is noted), and the messages. Having popped,
# it is let write also where memory is short (Redis refuses a script's first write only).
_TAKE = """
local left = tonumber(ARGV[1])
local codes, taken = {}, {}
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
            if not string.find(raw, ARGV[3], 1, true) then
                local is_json, message = pcall(cjson.decode, raw)
                local properties = is_json and type(message) == 'table' and message.properties
                local info = type(properties) == 'table' and properties.delivery_info
                if type(info) == 'table' and type(properties.delivery_tag) == 'string' then
                    local tag = properties.delivery_tag
                    redis.call('ZADD', KEYS[2], ARGV[2], tag)
                    redis.call('HSET', KEYS[1], tag, '[' .. raw .. ',' .. cjson.encode(info.exchange) .. ','
                        .. cjson.encode(info.routing_key) .. ']')
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
return taken
"""


class Taken(NamedTuple):
    """One message as it lay in the broker. `is_noted`: it is kept there until it is acknowledged."""

    queue: str
    is_noted: bool
    raw: bytes


class Taker:
    """Takes messages for one channel."""

    def __init__(self, client: redis.Redis, *, notes: str, index: str) -> None:
        """`notes` and `index`: the keys of kombu's hash and sorted set of unacknowledged messages."""
        self._take = client.register_script(_TAKE)
        self._noted_in = (notes, index)

    def take(self, lists: Sequence[tuple[str, str]], count: int) -> list[Taken]:
        """At most `count` messages, from the first of the `lists` (queue, key; at most 255) on.

        Raises redis.RedisError; ReadOnlyError where the server takes no writes.
        """
        keys = [*self._noted_in, *(key for _, key in lists)]
        found: Any = self._take(keys=keys, args=[count, BROKER_CLOCK.now_s(), HINT_MARK])
        codes, messages = found[0], found[1:]
        return [Taken(lists[codes[2 * i]][0], bool(codes[2 * i + 1]), raw) for i, raw in enumerate(messages)]
