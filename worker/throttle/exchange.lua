-- Takes a worker's report, and answers its share of the endpoint's limits. `worker/throttle/limits.py` does the same.
--
-- KEYS[1]  all that is kept of the endpoint's limits, as JSON:
--            began     when it was made, in ms of this server's clock
--            in_flight, requests, tokens   the limits that are set, where they are: the newest that a worker here knows
--            value, epoch, limit   the found limit: its number, its epoch, and all of it as a text
--            flow      what all workers saw of this epoch: name to sum
--            requests_paid, tokens_paid   when what was granted is paid off, in us since `began`
--            requests_rate, tokens_rate   the limits by which they were reckoned
--            workers   id to {seen, share, applied, in_flight, demand, most, is_adaptive, version of the limits that it
--                      knows, in ms, first: what it applied when it reported to a store that knew nothing of it, words,
--                      permits: as in `Held`}
--            told      place to {seen, requests, tokens}, as `Told`: limits that answers told
-- ARGV[1]  the report, as JSON:
--            worker, most, is_adaptive, applied, in_flight, demand, epoch, flow, wanted, unused, each_tokens,
--            back_tokens   as in `Report`
--            version, in_flight_limit, requests, tokens   as in `Fixed`
--            of_epoch, value, new_epoch, limit   as in `Change`, where there is one
--            known_epoch   the epoch of the limit that the worker knows
--            told   as `ToldReport`, where there is one
-- ARGV[2]  now, in ms; '' for this server's clock
-- ARGV[3]  '1' if other workers live: a state that is new grants nothing beyond what is applied for a while; else ''
-- ARGV[4]  how long a worker may be silent, in ms
-- ARGV[5]  how long a new state waits for reports, in ms
-- ARGV[6]  how long a worker has a call that does not divide, in ms
-- ARGV[7]  how long the state is kept, in ms
-- ARGV[8]  how long limits are kept that answers told and nobody tells any more, in ms
--
-- Answers an array: the share; permits, or -1 where no rate is limited; the epoch of the found limit, 0 for none; all of
-- the found limit, '' where the worker knows it; the flow as JSON; calls in flight of all workers; how many workers; now;
-- us until one more permit; 1 if the change was made, else 0. Uses only commands that the ACL in docs/operations.md grants.
local report, now = cjson.decode(ARGV[1]), tonumber(ARGV[2])
local silent, settling, turn_ms = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local stored = redis.call('GET', KEYS[1])
local state = stored and cjson.decode(stored)
if not state then
    state = { began = ARGV[3] == '1' and now or now - settling, epoch = 0, flow = {}, workers = {},
        requests_paid = 0, tokens_paid = 0 }
end

local changed = 0
if report.of_epoch == state.epoch then
    state.value, state.epoch, state.limit, state.flow = report.value, report.new_epoch, report.limit, {}
    changed = 1
elseif state.epoch > 0 and report.epoch == state.epoch then
    for name, sum in pairs(report.flow) do
        state.flow[name] = (state.flow[name] or 0) + sum
    end
end

local workers, latest = {}, now
for name, held in pairs(state.workers) do
    latest = math.max(latest, held.seen)
    if held.seen > now - silent and held.seen <= now + 1000 then
        workers[name] = held
    end
end
if latest > now + 1000 or state.began > now then -- the clock was set back
    local gone_us = math.max(0, latest - state.began) * 1000
    state.requests_paid, state.tokens_paid = state.requests_paid - gone_us, state.tokens_paid - gone_us
    state.began = now
    for _, held in pairs(workers) do
        held.first = held.applied
    end
    state.told = {}
end
state.workers = workers
local own = { seen = now, share = 0, applied = report.applied, in_flight = report.in_flight,
    demand = math.min(report.demand, report.most), most = report.most, version = report.version,
    is_adaptive = report.is_adaptive }
own.first = workers[report.worker] and workers[report.worker].first or report.applied
workers[report.worker] = own
local newest = report.version
for _, held in pairs(workers) do
    newest = math.max(newest, held.version or 0)
end
if report.version >= newest then
    state.in_flight, state.requests, state.tokens = report.in_flight_limit, report.requests, report.tokens
end

-- The share: `share_out` and `grant` of worker/policy/shares.py.
local function grant(limit, is_among)
    local names, wants, shares, hungry, others = {}, {}, {}, {}, 0
    for name, held in pairs(workers) do
        if is_among(held) then
            names[#names + 1] = name
            others = others + (held == own and 0 or math.max(held.share, held.applied, held.in_flight))
        end
    end
    table.sort(names)
    for index, name in ipairs(names) do
        wants[index], shares[index] = math.max(0, workers[name].demand), 0
        if wants[index] > 0 then
            hungry[#hungry + 1] = index
        end
    end
    local left = math.max(0, limit)
    while #hungry > 0 and left >= #hungry do
        local part, still = math.floor(left / #hungry), {}
        for _, index in ipairs(hungry) do
            local given = math.min(part, wants[index] - shares[index])
            shares[index] = shares[index] + given
            left = left - given
        end
        for _, index in ipairs(hungry) do
            if shares[index] < wants[index] then
                still[#still + 1] = index
            end
        end
        hungry = still
    end
    local first = #hungry > 0 and math.floor(now / turn_ms) % #hungry or 0
    for place = 0, math.min(left, #hungry) - 1 do
        local index = hungry[(first + place) % #hungry + 1]
        shares[index] = shares[index] + 1
    end
    local given, fair = 0, 0
    for index, name in ipairs(names) do
        given = given + shares[index]
        if name == report.worker then
            fair = shares[index]
        end
    end
    fair = math.min(own.most, fair + math.floor((limit - given) / #names))
    if now - state.began < settling then
        fair = math.min(fair, own.first)
    end
    return math.max(0, math.min(fair, limit - others))
end

own.share = own.most
if report.is_adaptive and state.value then
    own.share = grant(state.value, function(held) return held.is_adaptive end)
end
if state.in_flight then
    own.share = math.min(own.share, grant(state.in_flight, function() return true end))
end
if report.is_adaptive and not state.value then -- no more calls before there is a found limit
    own.share = math.min(own.share, own.applied)
end

-- What answers told: worker/policy/told_windows.py.
local words, left, told_wait_us, there = report.told, nil, 0, 0
state.told = state.told or {}
for place, one in pairs(state.told) do
    if now - one.seen > tonumber(ARGV[8]) then
        state.told[place] = nil
    end
end
local function pass_reset(known)
    if not known or now < known.late_ms then
        return known
    end
    local late = known.late_ms + math.max(known.span_ms, 1000)
    if known.is_assumed or known.limit == 0 or now >= late then
        return nil
    end
    return { left = known.limit, limit = known.limit, early_ms = known.late_ms, late_ms = late,
        span_ms = known.span_ms, at_ms = now, each_us = known.each_us, is_assumed = true }
end
local function note_window(known, new)
    if new.late_ms <= now then
        return known
    elseif not known then
        return new
    elseif known.is_assumed then
        return new.early_ms > known.early_ms and new or known
    elseif new.early_ms > known.late_ms then
        return new
    elseif new.late_ms < known.early_ms then
        return known
    end
    local least = new.left < known.left and new or known
    return { left = least.left, limit = least.limit, early_ms = math.max(known.early_ms, new.early_ms),
        late_ms = math.min(known.late_ms, new.late_ms), span_ms = math.max(known.span_ms, new.span_ms),
        at_ms = least.at_ms, each_us = new.each_us, is_assumed = false }
end
if words then
    own.words, own.permits = words, 0
    local told = state.told[words.place] or {}
    state.told[words.place] = told
    told.seen = now
    local uncounted, held_by_others, may_begin = { requests = 0, tokens = 0 }, 0, 0
    for _, held in pairs(workers) do
        if held.words and held.words.place == words.place then
            there = there + 1
            uncounted.requests = uncounted.requests + held.words.uncounted
            uncounted.tokens = uncounted.tokens + held.words.in_flight
            held_by_others = held_by_others + held.permits
            may_begin = may_begin + math.max(held.share, held.in_flight) + held.words.begun
        end
    end
    for _, name in ipairs({ 'requests', 'tokens' }) do
        local window, new = pass_reset(told[name]), words[name]
        if new then
            new.early_ms, new.late_ms, new.at_ms = new.early_ms + now, new.late_ms + now, new.at_ms + now
            window, words[name] = note_window(window, new), nil
        end
        told[name] = window
        if window then
            local back = 0
            if window.each_us > 0 then
                back = math.floor(math.floor(math.max(0, now - window.at_ms) * 1000 * 9 / 10) / window.each_us)
            end
            local more = window.left + back
            if window.limit > 0 then
                more = math.min(more, window.limit)
            end
            more = more - uncounted[name]
            if not left or more < left then
                left, told_wait_us = more, (window.late_ms - now) * 1000
            end
        end
    end
    if left then
        left = left - words.held - held_by_others
        if left >= 4 * may_begin then
            left = nil
        end
    end
end
local allowed = report.wanted
if left then
    allowed = math.max(0, math.min(report.wanted, math.ceil(left / there)))
end
if not left or allowed >= report.wanted then
    told_wait_us = 0
end

-- The permits: worker/policy/rates.py.
local minute, burst = 60000000, 600000
local now_us = (now - state.began) * 1000
local function cost(per_minute, units)
    return math.ceil(minute * math.max(0, units) / per_minute)
end
local function carry_over(paid, before, per_minute)
    if not before or before >= per_minute or paid <= now_us then
        return paid
    end
    return now_us + math.floor((paid - now_us) * before / per_minute)
end
local function take(paid, each, wanted, credit)
    local start, ahead = math.max(paid, now_us - credit), math.max(each, burst)
    local granted = math.max(0, math.min(wanted, math.floor((now_us + ahead - start) / math.max(1, each))))
    paid = math.max(now_us, start + granted * each)
    return granted, paid, math.max(0, paid + each - ahead - now_us)
end
local function settle(paid, per_minute, back, each)
    local start = math.max(paid, now_us)
    local moved = back >= 0 and start - cost(per_minute, back) or start + cost(per_minute, -back)
    return math.min(moved, now_us + math.max(minute, each))
end

local permits, wait_us = left and allowed or -1, 0
if state.requests or state.tokens then
    local paid, each, credit, token_wait_us = 0, 0, 0, 0
    permits = allowed
    if state.requests then
        each, credit = cost(state.requests, 1), cost(state.requests, report.unused)
        paid = carry_over(state.requests_paid, state.requests_rate, state.requests)
        paid = settle(paid, state.requests, report.unused, 0)
        state.requests_rate = state.requests
        permits, state.requests_paid, wait_us = take(paid, each, permits, credit)
    end
    if state.tokens then
        local back = report.back_tokens + report.unused * report.each_tokens
        local call = cost(state.tokens, report.each_tokens)
        local tokens_paid = carry_over(state.tokens_paid, state.tokens_rate, state.tokens)
        tokens_paid = settle(tokens_paid, state.tokens, back, call)
        state.tokens_rate = state.tokens
        permits, state.tokens_paid, token_wait_us = take(tokens_paid, call, permits, cost(state.tokens, back))
        wait_us = math.max(wait_us, token_wait_us)
        if state.requests then -- fewer than these: only what is granted is paid for
            local _
            _, state.requests_paid = take(paid, each, permits, credit)
        end
    end
end

if words then
    own.permits = words.held + math.max(0, permits)
end
local in_flight, count = 0, 0
for _, held in pairs(workers) do
    in_flight, count = in_flight + held.in_flight, count + 1
end
redis.call('SET', KEYS[1], cjson.encode(state), 'PX', ARGV[7])
return { own.share, permits, state.epoch, state.epoch ~= report.known_epoch and state.limit or '',
    cjson.encode(state.flow), in_flight, count, now, math.max(wait_us, told_wait_us), changed }
