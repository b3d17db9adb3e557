-- The placement map's writes. Each is one atomic step. The library's name contains a digest of this file, so that two
-- versions of MinT can share a Redis during an upgrade.

local RECENT = 64 -- for how many changes of the map, and reports of an engine, it is kept which adapters they changed

-- KEYS: epoch, version, base, placements, editions, waves, writing, recent, assigned...
-- ARGV: epoch, channel, base record or "", commit 0|1, ops, called, the version that the change was planned for (-1:
-- the map had none; "": any), which part of the change this is ("whole", "first", "next" or "last"), a unique token,
-- the key of the set of bases, and the base, which is added to it (that key is none of KEYS: a node of a Redis Cluster
-- then says where it leads on to, not that the keys are apart), the adapters whose placements the complete change
-- touches (JSON; "": too many).
-- ops (JSON): {"placements": {"set": [[adapter, json]...], "del": [...]}, "waves": the same, "assigned": [the same...]}
-- with one element of "assigned" for each key after the eighth. called (JSON): [[engine, its channel]...], every
-- engine whose part the complete change touches; they are notified when it commits. Returns the version.
local function change(key, ops)
  for _, pair in ipairs(ops.set) do redis.call('HSET', key, pair[1], pair[2]) end
  for _, field in ipairs(ops.del) do redis.call('HDEL', key, field) end
end

local function fence(key, epoch)
  local seen = tonumber(redis.call('GET', key) or '0')
  if epoch < seen then return redis.error_reply('STALEEPOCH ' .. seen) end
  if epoch > seen then redis.call('SET', key, epoch) end
  return nil
end

local function apply(keys, argv)
  local refused = fence(keys[1], tonumber(argv[1]))
  if refused then return refused end
  -- If Redis has lost the map meanwhile, readers would take this change for the complete map.
  local there = redis.call('GET', keys[2]) or '-1'
  if argv[7] ~= '' and argv[7] ~= there then return redis.error_reply('MAPCHANGED ' .. there) end
  -- A map that was lost twice has no version either time: the token shows whether the first part is still there.
  local part, token = argv[8], argv[9]
  local begins = part == 'first' or part == 'whole'
  -- Nobody knows what an earlier change did that was never completed: who follows must read everything once more.
  if begins and redis.call('GET', keys[7]) then redis.call('HSET', keys[8], 'torn', token) end
  if part == 'first' then redis.call('SET', keys[7], token) end
  if part == 'next' or part == 'last' then
    if redis.call('GET', keys[7]) ~= token then return redis.error_reply('MAPCHANGED ' .. there) end
  end
  if part == 'last' or part == 'whole' then redis.call('DEL', keys[7]) end
  redis.call('SADD', argv[10], argv[11])
  if argv[3] ~= '' then redis.call('SET', keys[3], argv[3]) end
  local ops = cjson.decode(argv[5])
  change(keys[4], ops.placements)
  change(keys[6], ops.waves)
  for i, each in ipairs(ops.assigned) do change(keys[8 + i], each) end
  if argv[4] == '1' then
    local version, torn = redis.call('INCR', keys[2]), redis.call('HDEL', keys[8], 'torn') == 1
    -- Followers need every version since theirs. So none before a gap is of use, nor those of an earlier life of the map.
    if not redis.call('HGET', keys[8], version - 1) then redis.call('DEL', keys[8]) end
    if argv[12] ~= '' and not torn then redis.call('HSET', keys[8], version, argv[12]) end
    redis.call('HDEL', keys[8], version - RECENT)
    redis.call('PUBLISH', argv[2], 'map')
    for _, each in ipairs(cjson.decode(argv[6])) do
      redis.call('HINCRBY', keys[5], each[1], 1)
      redis.call('PUBLISH', each[2], 'map')
    end
  end
  return tonumber(redis.call('GET', keys[2]) or '0')
end

-- KEYS: epoch, training, editions, trains..., lists to delete...   ARGV: epoch, ops, called, key of the set of bases, base
-- ops (JSON): {"training": {"set":, "del":}, "trains": [{"set":, "del":}...]} with one element of "trains" for each key
-- after the third; the keys after those are deleted. called and the last two are as in apply. The edition of "" grows
-- as waves' records change. The map's version stays as it is, so a map that was lost stays unknown until leases are
-- written: no missing lease is taken for a withdrawn one.
local function train(keys, argv)
  local refused = fence(keys[1], tonumber(argv[1]))
  if refused then return refused end
  local ops = cjson.decode(argv[2])
  redis.call('SADD', argv[4], argv[5])
  change(keys[2], ops.training)
  if #ops.training.set + #ops.training.del > 0 then redis.call('HINCRBY', keys[3], '', 1) end
  for i, each in ipairs(ops.trains) do change(keys[3 + i], each) end
  for i = 4 + #ops.trains, #keys do redis.call('DEL', keys[i]) end
  for _, each in ipairs(cjson.decode(argv[3])) do
    redis.call('HINCRBY', keys[3], each[1], 1)
    redis.call('PUBLISH', each[2], 'map')
  end
  return #ops.trains
end

-- KEYS: epoch   ARGV: epoch
-- Fence off whoever has written the base before. One without an epoch stays so: nobody has written it, and one with an
-- epoch and no record counts as removed (catalog.lua).
local function claim(keys, argv)
  return redis.call('GET', keys[1]) and fence(keys[1], tonumber(argv[1])) or 1
end

-- KEYS: epoch, then other keys of the base   ARGV: epoch
local function forget(keys, argv)
  local refused = fence(keys[1], tonumber(argv[1]))
  if refused then return refused end
  for i = 2, #keys do redis.call('UNLINK', keys[i]) end
  return #keys - 1
end

-- KEYS: epoch, base   ARGV: epoch, key of the set of bases, base
-- Take a base out of the set, unless it has a record: a call that was held up on its way may run only once the base is
-- there again.
local function unlist(keys, argv)
  local refused = fence(keys[1], tonumber(argv[1]))
  if refused then return refused end
  return redis.call('GET', keys[2]) and 0 or redis.call('SREM', argv[2], argv[3])
end

-- Nanoseconds exceed a double's 53 bits: compare the decimal strings by length, then by text.
local function later(one, other)
  return #one > #other or (#one == #other and one > other)
end

-- Return the sequence of a kept "INCARNATION SEQUENCE" mark; nil if the mark is from another incarnation.
local function at(kept, incarnation)
  local start, sequence = string.match(kept or '', '^(%d+) (%d+)$')
  return start == incarnation and tonumber(sequence) or nil
end

-- Return the known incarnation, and an error if it is later than this one and its heartbeat is alive. One without a
-- heartbeat excludes nobody: the clock may have been put back since.
local function outlived(keys, engine, incarnation)
  local known = redis.call('HGET', keys[1], engine)
  if known and later(known, incarnation) and redis.call('EXISTS', keys[2]) == 1 then
    return known, redis.error_reply('STALEINCARNATION ' .. known)
  end
  return known, nil
end

-- Write `pairs` pairs of field and value from argv[first] on; delete the fields after them. Plain arguments and many
-- fields in one call take half the time of JSON and one call for each field.
local function write(key, argv, first, pairs)
  local last, most = first + 2 * pairs - 1, 200
  for i = first, last, most do redis.call('HSET', key, unpack(argv, i, math.min(i + most - 1, last))) end
  for i = last + 1, #argv, most do redis.call('HDEL', key, unpack(argv, i, math.min(i + most - 1, #argv))) end
end

-- Remove an unfinished report of this incarnation or an earlier one, up to the sequence (nil: any): nothing continues
-- it, and while it exists the engine seems to be reporting. Returns whether there was one.
local function drop(key, incarnation, sequence)
  local start, there = string.match(redis.call('HGET', key, '') or '', '^(%d+) (%d+)$')
  if not start or later(start, incarnation) then return false end
  if start == incarnation and sequence and tonumber(there) > sequence then return false end
  redis.call('UNLINK', key)
  return true
end

-- KEYS: engines, engine, telling, told
-- ARGV: engine, incarnation, over, sequence, heartbeat's ttl ms, ttl ms of this part, pairs, fields and values...
-- Store one part of everything that an engine holds, beside what the map has of it until `report` brings the last part,
-- so that nobody reads half of it. `over` is the sequence of the previous part, 0: none. A part that comes twice, or
-- late, changes nothing. Returns 1 if the part is there, 0 if those before it are missing or later ones came. Readers
-- see from the remaining ttl when the engine last called, so every call that finds its part renews the ttl.
local function tell(keys, argv)
  local incarnation, over, sequence = argv[2], tonumber(argv[3]), tonumber(argv[4])
  local known, refused = outlived(keys, argv[1], incarnation)
  if refused then return refused end
  local mark = redis.call('HGET', keys[3], '')
  local start = string.match(mark or '', '^%d+')
  if start and later(start, incarnation) and redis.call('PTTL', keys[3]) > argv[6] - argv[5] then
    return redis.error_reply('STALEINCARNATION ' .. start)
  end
  local there = at(mark, incarnation)
  if there ~= sequence then
    if over == 0 then
      local told = known == incarnation and at(redis.call('HGET', keys[4], argv[1]), incarnation) or 0
      if math.max(there or 0, told) >= sequence then return 0 end
      redis.call('UNLINK', keys[3])
    elseif there ~= over then
      return 0
    end
    write(keys[3], argv, 8, tonumber(argv[7]))
    redis.call('HSET', keys[3], '', incarnation .. ' ' .. argv[4])
  end
  redis.call('PEXPIRE', keys[3], argv[6])
  if known == incarnation then redis.call('PEXPIRE', keys[2], argv[5]) end
  return 1
end

-- KEYS: engines, engine, held, version, editions, told, telling, recent
-- ARGV: engine, incarnation, record, ttl ms, full 0|1, over, sequence, channel, news 0|1, pairs, fields and values...
-- Bring the map to `sequence` of this incarnation. Without `full` the map must be at `over`; with it, the parts stored
-- by `tell` up to `over` (0: none) and this report replace what is there. `recent` keeps, by incarnation and sequence,
-- which adapters each of the last reports has changed, if they are fewer than RECENT. A report that comes twice, or
-- late, changes nothing of what is held: a Redis that stood still may run calls that nobody waits for any more.
-- Returns {1 if the report was taken, 0 if a full one is needed; version or -1; edition; number of adapters held}.
-- A heartbeat without news notifies nobody: with a thousand engines the messages alone would keep every follower busy.
local function report(keys, argv)
  local incarnation, full, over, sequence = argv[2], argv[5] == '1', tonumber(argv[6]), tonumber(argv[7])
  local known, refused = outlived(keys, argv[1], incarnation)
  if refused then return refused end
  local there = known == incarnation and at(redis.call('HGET', keys[6], argv[1]), incarnation) or nil
  local again = there == sequence and over ~= sequence and not (full and over == 0)
  if full and not again then
    if there and there > sequence then return { 0, -1, 0, 0 } end
    if over > 0 and at(redis.call('HGET', keys[7], ''), incarnation) ~= over then return { 0, -1, 0, 0 } end
    redis.call('UNLINK', keys[3], keys[8])
    if over > 0 then
      redis.call('PERSIST', keys[7])
      redis.call('RENAME', keys[7], keys[3])
      redis.call('HDEL', keys[3], '')
    else
      drop(keys[7], incarnation, sequence)
    end
    redis.call('HSET', keys[1], argv[1], incarnation)
  elseif not full and not again and there ~= over then
    return { 0, -1, 0, 0 }
  end
  if not again then
    local count, names = tonumber(argv[10]), {}
    write(keys[3], argv, 11, count)
    if not full and #argv > 10 then
      for i = 11, #argv do
        if i >= 11 + 2 * count or i % 2 == 1 then names[#names + 1] = argv[i] end
      end
      local mark = incarnation .. ' '
      if #names < RECENT then redis.call('HSET', keys[8], mark .. argv[7], cjson.encode(names)) end
      redis.call('HDEL', keys[8], mark .. sequence - RECENT)
    end
    if there ~= sequence then redis.call('HSET', keys[6], argv[1], incarnation .. ' ' .. argv[7]) end
  end
  redis.call('SET', keys[2], argv[3], 'PX', argv[4])
  if argv[9] == '1' then redis.call('PUBLISH', argv[8], 'engine ' .. argv[1]) end
  local version = tonumber(redis.call('GET', keys[4]) or '-1')
  local edition = tonumber(redis.call('HGET', keys[5], argv[1]) or '0')
  return { 1, version, edition, redis.call('HLEN', keys[3]) }
end

-- KEYS: engines, engine, telling   ARGV: engine, incarnation, channel
-- End an engine's heartbeat and drop its unfinished report, but not those of a later incarnation. An engine that ends
-- while it reports to a map that had lost it is announced as well: readers took it for alive until now.
local function leave(keys, argv)
  local known = redis.call('HGET', keys[1], argv[1]) == argv[2]
  local told = drop(keys[3], argv[2])
  if known then redis.call('DEL', keys[2]) end
  if known or told then
    redis.call('PUBLISH', argv[3], 'engine ' .. argv[1])
    return 1
  end
  return 0
end

-- KEYS: engines, progress, trains, rewards..., curves...
-- ARGV: engine, incarnation, full 0|1, set (JSON pairs), del (JSON), lists, channel
-- lists (JSON): [[policy, first, [value...]]...], one for each key after the third: the list's values from `first` on.
-- A list is written only while the map has the engine's lease: it is deleted once, with the wave, and an engine that
-- has yet to read of that deletion would create it again for good.
-- Returns -1 if the map does not know this incarnation, else the indices of the lists that are shorter than `first`,
-- and of those without a lease.
local function progress(keys, argv)
  local known, incarnation = redis.call('HGET', keys[1], argv[1]), argv[2]
  if known and later(known, incarnation) then return redis.error_reply('STALEINCARNATION ' .. known) end
  if known ~= incarnation then return -1 end
  if argv[3] == '1' then redis.call('DEL', keys[2]) end
  change(keys[2], { set = cjson.decode(argv[4]), del = cjson.decode(argv[5]) })
  local short, unleased = {}, {}
  for i, each in ipairs(cjson.decode(argv[6])) do
    local key, first = keys[3 + i], each[2]
    if redis.call('HEXISTS', keys[3], each[1]) == 0 then
      unleased[#unleased + 1] = i
    elseif redis.call('LLEN', key) < first then
      short[#short + 1] = i
    else
      if first == 0 then redis.call('DEL', key) else redis.call('LTRIM', key, 0, first - 1) end
      for _, value in ipairs(each[3]) do redis.call('RPUSH', key, value) end
    end
  end
  redis.call('PUBLISH', argv[7], 'engine ' .. argv[1])
  return { short, unleased }
end

-- KEYS: training   ARGV: policy
-- Return 1 if a training wave has a policy of this name, else 0. A name is written in JSON as it is, so only records
-- that mention it are decoded; callers need not read a thousand waves for one name.
local function trained(keys, argv)
  local quoted = '"' .. argv[1] .. '"'
  local all = redis.call('HGETALL', keys[1])
  for i = 2, #all, 2 do
    if string.find(all[i], quoted, 1, true) then
      local readable, wave = pcall(cjson.decode, all[i])
      local policies = readable and type(wave) == 'table' and wave.policies
      for _, name in ipairs(type(policies) == 'table' and policies or {}) do
        if name == argv[1] then return 1 end
      end
    end
  end
  return 0
end

-- With memory full and without this flag, Redis would refuse all of these, even calls that only delete: all heartbeats
-- would stop, and nothing could be freed. The map is as large as what engines hold, twice that while they report all of
-- it again, and has the names of RECENT changes; what clients can make grow is refused (catalog.lua).
redis.register_function{ function_name = 'LIBRARY_apply', callback = apply, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'LIBRARY_train', callback = train, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'LIBRARY_trained', callback = trained, flags = { 'no-writes' } }
redis.register_function{ function_name = 'LIBRARY_progress', callback = progress, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'LIBRARY_claim', callback = claim, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'LIBRARY_forget', callback = forget, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'LIBRARY_unlist', callback = unlist, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'LIBRARY_tell', callback = tell, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'LIBRARY_report', callback = report, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'LIBRARY_leave', callback = leave, flags = { 'allow-oom' } }
