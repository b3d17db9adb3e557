-- The placement map's writes. Each is one atomic step; the library's name carries a digest of this file, so that
-- two versions of MinT can share a Redis while one replaces the other.

-- KEYS: epoch, version, base, placements, editions, waves, writing, assigned...
-- ARGV: epoch, channel, base record or "", commit 0|1, ops, called, version that the change is made for, -1: none, or "",
-- which part of the change this is ("whole", "first", "next" or "last"), and a token that no other change has
-- ops (JSON): {"placements": {"set": [[adapter, json]...], "del": [...]}, "waves": the same, "assigned": [the same...]}
-- with one element of "assigned" for each key after the seventh. called (JSON): [[engine, its channel]...], every engine
-- whose part the whole change touches; they are called when it commits.
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
  -- A change of a map that Redis has lost meanwhile would be taken for the whole of it.
  local there = redis.call('GET', keys[2]) or '-1'
  if argv[7] ~= '' and argv[7] ~= there then return redis.error_reply('MAPCHANGED ' .. there) end
  -- Lost and lost again are both without a version: what the first part has left tells whether that is there yet.
  local part, token = argv[8], argv[9]
  if part == 'first' then redis.call('SET', keys[7], token) end
  if part == 'next' or part == 'last' then
    if redis.call('GET', keys[7]) ~= token then return redis.error_reply('MAPCHANGED ' .. there) end
  end
  if part == 'last' then redis.call('DEL', keys[7]) end
  if argv[3] ~= '' then redis.call('SET', keys[3], argv[3]) end
  local ops = cjson.decode(argv[5])
  change(keys[4], ops.placements)
  change(keys[6], ops.waves)
  for i, each in ipairs(ops.assigned) do change(keys[7 + i], each) end
  if argv[4] == '1' then
    redis.call('INCR', keys[2])
    redis.call('PUBLISH', argv[2], 'map')
    for _, each in ipairs(cjson.decode(argv[6])) do
      redis.call('HINCRBY', keys[5], each[1], 1)
      redis.call('PUBLISH', each[2], 'map')
    end
  end
  return tonumber(redis.call('GET', keys[2]) or '0')
end

-- KEYS: epoch, training, editions, trains..., rewards...   ARGV: epoch, ops, called
-- ops (JSON): {"training": {"set":, "del":}, "trains": [{"set":, "del":}...]} with one element of "trains" for each key
-- after the third; the keys after those are deleted. called is as in apply. The map's version stays as it is, so a
-- map that was lost stays unknown: leases are written first, and none is taken for withdrawn because it is not there.
local function train(keys, argv)
  local refused = fence(keys[1], tonumber(argv[1]))
  if refused then return refused end
  local ops = cjson.decode(argv[2])
  change(keys[2], ops.training)
  for i, each in ipairs(ops.trains) do change(keys[3 + i], each) end
  for i = 4 + #ops.trains, #keys do redis.call('DEL', keys[i]) end
  for _, each in ipairs(cjson.decode(argv[3])) do
    redis.call('HINCRBY', keys[3], each[1], 1)
    redis.call('PUBLISH', each[2], 'map')
  end
  return #ops.trains
end

-- KEYS: epoch, then other keys of the base   ARGV: epoch
local function forget(keys, argv)
  local refused = fence(keys[1], tonumber(argv[1]))
  if refused then return refused end
  for i = 2, #keys do redis.call('UNLINK', keys[i]) end
  return #keys - 1
end

-- Nanoseconds exceed a double's 53 bits: compare the decimal strings by length, then by text.
local function later(one, other)
  return #one > #other or (#one == #other and one > other)
end

-- The sequence in "INCARNATION SEQUENCE", as is kept of what an engine has told; nil where that is another start's.
local function at(kept, incarnation)
  local start, sequence = string.match(kept or '', '^(%d+) (%d+)$')
  return start == incarnation and tonumber(sequence) or nil
end

-- A start whose heart beats no more keeps nobody out: the clock may have been put back since.
local function outlived(keys, engine, incarnation)
  local known = redis.call('HGET', keys[1], engine)
  if known and later(known, incarnation) and redis.call('EXISTS', keys[2]) == 1 then
    return known, redis.error_reply('STALEINCARNATION ' .. known)
  end
  return known, nil
end

-- So many pairs of a field and its value from argv[first] on, and behind them fields to delete. They come as they are,
-- and many go to Redis in one call: as JSON, one by one, they would take it twice as long.
local function write(key, argv, first, pairs)
  local last, most = first + 2 * pairs - 1, 200
  for i = first, last, most do redis.call('HSET', key, unpack(argv, i, math.min(i + most - 1, last))) end
  for i = last + 1, #argv, most do redis.call('HDEL', key, unpack(argv, i, math.min(i + most - 1, #argv))) end
end

-- Removes what this start, or one before it, has told in part up to the sequence (nil: at all): nobody goes on from
-- there, and while it is there an engine seems to be telling. Returns whether there was such a part.
local function drop(key, incarnation, sequence)
  local start, there = string.match(redis.call('HGET', key, '') or '', '^(%d+) (%d+)$')
  if not start or later(start, incarnation) then return false end
  if start == incarnation and sequence and tonumber(there) > sequence then return false end
  redis.call('UNLINK', key)
  return true
end

-- KEYS: engines, engine, telling, told
-- ARGV: engine, incarnation, over, sequence, ms that a heart beats on, ms that this is kept, pairs, what to write...
-- A part of all that an engine holds: put beside what the map has of it until the last part comes with its report, so
-- that nobody reads half of it. `over` is the sequence of the part before, 0: none. A part that comes twice, or late,
-- changes nothing. Returns 1 when it is there, 0 when those before it are not, or more came behind it. How long this is
-- kept yet tells readers when the engine last called, so that each call that finds its part there begins that anew.
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

-- KEYS: engines, engine, held, version, editions, told, telling
-- ARGV: engine, incarnation, record, ttl ms, full 0|1, over, sequence, channel, news 0|1, pairs, what to write...
-- The map then is at `sequence` of this start. Without `full` it must be at `over` for that; with it, what is there is
-- replaced by what `tell` was told up to `over` (0: nothing), and this. A report that comes twice, or late, changes
-- nothing of what is held: a Redis that stood still carries out what nobody waits for any more.
-- Returns {1 when that was so, 0 when a full report is needed; version or -1; edition; how many adapters are held}.
-- A heartbeat without news calls nobody: with a thousand engines the calls alone would keep every follower busy.
local function report(keys, argv)
  local incarnation, full, over, sequence = argv[2], argv[5] == '1', tonumber(argv[6]), tonumber(argv[7])
  local known, refused = outlived(keys, argv[1], incarnation)
  if refused then return refused end
  local there = known == incarnation and at(redis.call('HGET', keys[6], argv[1]), incarnation) or nil
  local again = there == sequence and over ~= sequence and not (full and over == 0)
  if full and not again then
    if there and there > sequence then return { 0, -1, 0, 0 } end
    if over > 0 and at(redis.call('HGET', keys[7], ''), incarnation) ~= over then return { 0, -1, 0, 0 } end
    redis.call('UNLINK', keys[3])
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
    write(keys[3], argv, 11, tonumber(argv[10]))
    if there ~= sequence then redis.call('HSET', keys[6], argv[1], incarnation .. ' ' .. argv[7]) end
  end
  redis.call('SET', keys[2], argv[3], 'PX', argv[4])
  if argv[9] == '1' then redis.call('PUBLISH', argv[8], 'engine ' .. argv[1]) end
  local version = tonumber(redis.call('GET', keys[4]) or '-1')
  local edition = tonumber(redis.call('HGET', keys[5], argv[1]) or '0')
  return { 1, version, edition, redis.call('HLEN', keys[3]) }
end

-- KEYS: engines, engine, telling   ARGV: engine, incarnation, channel
-- An old start that ends late leaves the heart of the next one beating, and what that one is telling. A start that ends
-- as it tells a map that had lost it is made known as well: it was taken for alive until now.
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

-- KEYS: engines, progress, trains, rewards...
-- ARGV: engine, incarnation, full 0|1, set (JSON pairs), del (JSON), lists, channel
-- lists (JSON): [[policy, first, [value...]]...], one for each key after the third: the list's values from `first` on.
-- A list is written only while the map has the engine's lease: it goes with the wave, once, and an engine that has yet
-- to read that the wave is gone would make it anew for good.
-- Returns -1 when the map does not know this incarnation, else the indices of the lists that are too short for theirs,
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

-- Where memory is full Redis would refuse each of these, a call that only deletes too: every engine's heart would stop,
-- and nothing could be freed. The map is as large as what engines hold, twice that while they tell all of it anew; what
-- clients let grow is refused (catalog.lua).
redis.register_function{ function_name = 'LIBRARY_apply', callback = apply, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'LIBRARY_train', callback = train, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'LIBRARY_progress', callback = progress, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'LIBRARY_forget', callback = forget, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'LIBRARY_tell', callback = tell, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'LIBRARY_report', callback = report, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'LIBRARY_leave', callback = leave, flags = { 'allow-oom' } }
