-- Takes messages off their lists, and notes each that is more than a hint, in one step.
-- A worker that is killed before it reads the answer has lost hints only: the ledger publishes those again.
--
-- KEYS[1]   the notes: a hash, delivery tag to '[message, "exchange", "routing key"]', as kombu writes it
-- KEYS[2]   their index: a sorted set, delivery tag to when its lease began (s of this server's clock)
-- KEYS[3]…  the lists to take from, at most 255, those to be emptied first first
-- ARGV[1]   most messages in all
-- ARGV[2]   most of them from lists of lone messages
-- ARGV[3]   most of them from lists of bulk messages
-- ARGV[4]   one character for each list: 'b' bulk, 'l' lone
-- ARGV[5]   now (s of this server's clock)
-- ARGV[6]   text that marks a hint; what holds it is not noted
-- ARGV[7]   most bytes of a message that is taken whole; a larger one is cut to its ends
-- ARGV[8]   a prefix for delivery tags that nobody else makes
-- ARGV[9]   a Lua pattern that finds the name of our task
-- ARGV[10]  a prefix for the list where a message goes that is too large and has another task
--
-- Answers an array: first a string of two bytes a message (the position of its list from 0; 0 not noted, 1 noted,
-- 2 noted and cut, 3 set aside whole because it is too large and not ours), then the messages ('' for those set
-- aside), then the tags of the noted ones in their order.
--
-- Once something was popped nothing here may fail, since what was popped is nowhere else. Having popped, a script may
-- write also where memory is short: Redis refuses a script's first write only.
local left = { all = tonumber(ARGV[1]), l = tonumber(ARGV[2]), b = tonumber(ARGV[3]) }
local longest = tonumber(ARGV[7])
local codes, taken, tags = {}, {}, {}

local function name(value, other)
    return cjson.encode(type(value) == 'string' and value or other)
end

local function note(tag, text)
    if type(tag) ~= 'string' or #tag > 255 or not string.find(tag, '^[%w_.:-]+$')
        or redis.call('HGET', KEYS[1], tag) then
        tag = ARGV[8] .. ':' .. #taken
    end
    redis.call('ZADD', KEYS[2], ARGV[5], tag)
    redis.call('HSET', KEYS[1], tag, text)
    tags[#tags + 1] = tag
end

for i = 3, #KEYS do
    local kind = string.sub(ARGV[4], i - 2, i - 2)
    local wanted = math.min(left.all, left[kind])
    local found = wanted > 0 and redis.pcall('RPOP', KEYS[i], wanted)
    if type(found) == 'table' then
        if found.err then
            if #taken == 0 then return found end
            break
        end
        for _, raw in ipairs(found) do
            local is_noted = 0
            if #raw > longest and string.find(raw, '^%s*{') and not string.find(raw, ARGV[9]) then
                redis.call('LPUSH', ARGV[10] .. KEYS[i], raw)
                raw = ''
                is_noted = 3
            elseif #raw > longest then
                raw = string.sub(raw, 1, 8192) .. string.sub(raw, -65536)
                note(nil, raw)
                is_noted = 2
            elseif not string.find(raw, ARGV[6], 1, true) then
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
            taken[#taken + 1] = raw
            codes[#taken] = string.char(i - 3, is_noted)
        end
        left.all = left.all - #found
        left[kind] = left[kind] - #found
    end
end
table.insert(taken, 1, table.concat(codes))
for _, tag in ipairs(tags) do taken[#taken + 1] = tag end
return taken
