-- The catalog's writes and reads (keys.py lists the keys). Names are kept in leaves: hashes of neighbouring names,
-- small enough for Redis's compact encoding, which split when full as in a B-tree. A directory holds the first name
-- of each leaf's range. Leaf keys are built here, in the hash slot of the given keys.
--
-- A leaf's fields: NAME -> newest state of an adapter, NAME "@" ID -> an older revision.
-- A value: sequence (8 bytes), ID of the revision (6 bytes; zeros: retired), number of its root and of its labels
-- (2 bytes each; 65535: the text follows, after its length in 2 bytes), then bytes that only clients read.
-- A state with a larger sequence replaces one with a smaller one, so what a name means does not depend on the order of
-- calls. Its older revisions may: a registration that comes after both its retirement and a newer registration, which
-- replaced the record of that, stays one of them until the next rebuild.

local LEAF_FIELDS = 64    -- half of Redis's default for hash-max-listpack-entries: finding a field takes half the time
local CHECKED_EVERY = 4   -- check every 4th row of a batch, the first included: a leaf may exceed its limit by a few
local DICTIONARY = 60000  -- the most texts that get a number; further ones are written out
local INLINE = 65535
local OLDER = 8           -- older revisions kept of each name beside the newest
local RETIRED = '\0\0\0\0\0\0'

-- Shares of Redis's maxmemory beyond which catalogs stop growing: at 100 % Redis would not load another version's
-- functions either, and would refuse every write, even those that free memory. Above REGISTERED nothing new gets
-- sequences; entries that have theirs, and those that Redis lost, may still come in up to BROUGHT_IN.
local REGISTERED, BROUGHT_IN = 0.90, 0.95

local function crowded(share)
  local memory = redis.call('INFO', 'memory')
  local most = tonumber(string.match(memory, 'maxmemory:(%d+)'))
  if most > 0 and tonumber(string.match(memory, 'used_memory:(%d+)')) > share * most then
    return redis.error_reply('OOM catalogs take no more than their share of the memory')
  end
end

local function sequence_of(value) return (struct.unpack('>I8', value)) end
local function id_of(value) return string.sub(value, 9, 14) end

local function leaf_of(directory, name)
  return redis.call('ZREVRANGEBYLEX', directory, '[' .. name, '-', 'LIMIT', 0, 1)[1]
end

-- Give a new text its number and return it; 65535 if the dictionary is full.
local function new_number(texts, numbers, text)
  local number = redis.call('HLEN', texts)
  if number >= DICTIONARY then return INLINE end
  redis.call('HSET', texts, number, text)
  redis.call('HSET', numbers, text, number)
  return number
end

-- Return how a value refers to each text of the batch's list at `at`: its number, and the text itself if it has none.
local function numbered(texts, numbers, batch, at)
  local found, given, count = {}, {}
  count, at = struct.unpack('>I2', batch, at)
  for i = 1, count do given[i], at = struct.unpack('>I2c0', batch, at) end
  local known = count > 0 and redis.call('HMGET', numbers, unpack(given)) or {}
  for i, text in ipairs(given) do
    local number = tonumber(known[i] or new_number(texts, numbers, text))
    found[i] = { struct.pack('>I2', number), number == INLINE and struct.pack('>I2', #text) .. text or '' }
  end
  return found, at
end

local function name_of(field) return string.match(field, '^[^@]*') end

-- Return six bytes of each field's name, from the first byte that differs, as numbers, and the names' common prefix.
-- Numbers compare as bytes do, whatever the machine's collation, and sort in a tenth of the time that names take.
local function ranked(fields)
  local first = name_of(fields[1])
  local length, ranks = #first, {}
  for _, field in ipairs(fields) do
    local name = name_of(field)
    while string.sub(name, 1, length) ~= string.sub(first, 1, length) do length = length - 1 end
  end
  for i, field in ipairs(fields) do
    local piece = string.sub(name_of(field), length + 1, length + 6)
    ranks[i] = (struct.unpack('>I6', piece .. string.rep('\0', 6 - #piece)))
  end
  return ranks, string.sub(first, 1, length)
end

-- Return the rank from which names go to a new leaf; nil if there is only one name.
local function middle_of(ranks)
  local sorted = {}
  for i, rank in ipairs(ranks) do sorted[i] = rank end
  table.sort(sorted)
  for i = math.floor(#sorted / 2) + 1, #sorted do
    if sorted[i] > sorted[1] then return sorted[i] end
  end
end

-- Forget names retired before `horizon`; move the upper half of a full leaf into a new leaf. Uses a few calls with many
-- arguments each: a call costs more than its work on one field. Returns how many names were forgotten.
local function split(keys, leaf, horizon)
  local key = keys.leaves .. leaf
  local all, gone, fields, values = redis.call('HGETALL', key), {}, {}, {}
  for i = 1, #all, 2 do
    if id_of(all[i + 1]) == RETIRED and sequence_of(all[i + 1]) < horizon then
      gone[#gone + 1] = all[i]
    else
      fields[#fields + 1], values[#values + 1] = all[i], all[i + 1]
    end
  end
  if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
  if #fields < LEAF_FIELDS then return #gone end
  local ranks, common = ranked(fields)
  local middle = middle_of(ranks)
  if not middle then return #gone end
  local begin, moved, left = common .. string.match(struct.pack('>I6', middle), '^%Z*'), {}, {}
  for i, field in ipairs(fields) do
    if ranks[i] >= middle then
      moved[#moved + 1], moved[#moved + 2] = field, values[i]
      left[#left + 1] = field
    end
  end
  redis.call('HSET', keys.leaves .. begin, unpack(moved))
  redis.call('HDEL', key, unpack(left))
  redis.call('ZADD', keys.directory, 0, begin)
  return #gone
end

-- Return the fields of a name's older revisions in a leaf.
local function older_of(key, name)
  local found, start = {}, name .. '@'
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if string.sub(field, 1, #start) == start then found[#found + 1] = field end
  end
  return found
end

-- Keep an older revision, dropping the oldest beyond OLDER. Returns by how many the number of older revisions grew.
local function keep_older(key, name, value)
  local field = name .. '@' .. id_of(value)
  local known = redis.call('HGET', key, field)
  if known and sequence_of(known) >= sequence_of(value) then return 0 end
  redis.call('HSET', key, field, value)
  if known then return 0 end
  local fields = older_of(key, name)
  if #fields <= OLDER then return 1 end
  local oldest, least
  for _, each in ipairs(fields) do
    local sequence = sequence_of(redis.call('HGET', key, each))
    if not least or sequence < least then oldest, least = each, sequence end
  end
  redis.call('HDEL', key, oldest)
  return 0
end

-- Merge one state of a name that its leaf already has; `tally` counts what was added and removed.
local function merge(key, name, value, tally)
  local old = redis.call('HGET', key, name)
  local retired, was_retired = id_of(value) == RETIRED, id_of(old) == RETIRED
  if sequence_of(value) <= sequence_of(old) then
    if retired then
      for _, field in ipairs(older_of(key, name)) do
        if sequence_of(redis.call('HGET', key, field)) < sequence_of(value) then
          tally.older = tally.older - redis.call('HDEL', key, field)
        end
      end
    elseif not was_retired and id_of(value) ~= id_of(old) then
      tally.older = tally.older + keep_older(key, name, value)
    end
    return
  end
  if retired then
    for _, field in ipairs(older_of(key, name)) do tally.older = tally.older - redis.call('HDEL', key, field) end
  else
    tally.older = tally.older - redis.call('HDEL', key, name .. '@' .. id_of(value))
    if not was_retired and id_of(value) ~= id_of(old) then tally.older = tally.older + keep_older(key, name, old) end
  end
  redis.call('HSET', key, name, value)
  local was, is = was_retired and 'retired' or 'count', retired and 'retired' or 'count'
  tally[was] = tally[was] - 1
  tally[is] = tally[is] + 1
end

-- Merge one state of any name. Most names of a bulk registration are new, and cost one call.
local function put(key, name, value, tally)
  if redis.call('HSETNX', key, name, value) == 0 then return merge(key, name, value, tally) end
  local is = id_of(value) == RETIRED and 'retired' or 'count'
  tally[is] = tally[is] + 1
end

-- Merge one state of a name only if the leaf has it: retiring it makes its value shorter.
local function put_known(key, name, value, tally)
  if redis.call('HEXISTS', key, name) == 1 then merge(key, name, value, tally) end
end

local function named(keys)
  return { meta = keys[1], directory = keys[2], roots = keys[3], root_numbers = keys[4],
           labels = keys[5], label_numbers = keys[6] }
end

-- Refuse entries of a base that the operator has removed (only its epoch is left): nobody would remove them again.
local function removed(given)
  if redis.call('EXISTS', given[7]) == 1 and redis.call('EXISTS', given[8]) == 0 then
    return redis.error_reply('CATALOGINCOMPLETE')
  end
end

-- Refuse a part whose writer stood still for so long that its sequences are settled: a merge of the parts around it may
-- have missed it, and then replaces it. An incomplete copy does not know what is settled. `first` is 0 for parts that
-- were found in the manifests.
local function late(key, first)
  if first == 0 then return end
  local known = redis.call('HMGET', key, 'complete', 'through')
  if known[1] ~= '1' then return redis.error_reply('CATALOGINCOMPLETE') end
  if first <= tonumber(known[2] or '0') then return redis.error_reply('CATALOGSETTLED') end
end

-- Refuse entries of a registration whose manifests ("": any) are no longer the catalog's: they would be in these alone.
local function moved(key, manifests)
  local known = redis.call('HGET', key, 'manifests')
  if manifests ~= '' and known and known ~= manifests then return redis.error_reply('CATALOGINCOMPLETE') end
end

-- KEYS: catalog, directory, roots, numbers of roots, labels, numbers of labels, epoch, base
-- ARGV: prefix of leaf keys, batch, horizon, channel, news, token (see apply), first sequence of the batch's part or 0,
-- URI of its manifests or ""
-- batch: number of roots, each after its length; the same for labels; then rows: length of the name, name, head
-- (14 bytes), index of its root, index of its labels (from 1; both 0 for a retired name), length of the rest, rest.
-- A name's length has one byte, every other number two. Returns the catalog's new version.
local function bring_in(given, argv, put_row)
  local keys, refused = named(given), removed(given) or late(given[1], tonumber(argv[7])) or moved(given[1], argv[8])
  if refused then return refused end
  keys.leaves = argv[1]
  local batch, horizon, row, tally = argv[2], tonumber(argv[3]), 0, { count = 0, older = 0, retired = 0 }
  local roots, labels, at
  roots, at = numbered(keys.roots, keys.root_numbers, batch, 1)
  labels, at = numbered(keys.labels, keys.label_numbers, batch, at)
  if redis.call('EXISTS', keys.directory) == 0 then redis.call('ZADD', keys.directory, 0, '') end
  while at <= #batch do
    local name, value, root, label, rest
    name, value, root, label, rest, at = struct.unpack('>I1c0c14I2I2I2c0', batch, at)
    if root > 0 then
      root, label = roots[root], labels[label]
      value = value .. root[1] .. label[1] .. root[2] .. label[2] .. rest
    end
    local leaf = leaf_of(keys.directory, name)
    local key = keys.leaves .. leaf
    put_row(key, name, value, tally)
    if row % CHECKED_EVERY == 0 and redis.call('HLEN', key) >= LEAF_FIELDS then
      tally.retired = tally.retired - split(keys, leaf, horizon)
    end
    row = row + 1
  end
  for what, grown in pairs(tally) do
    if grown ~= 0 then redis.call('HINCRBY', keys.meta, what, grown) end
  end
  local version = redis.call('HINCRBY', keys.meta, 'version', 1)
  -- An incomplete copy answers nobody, so there is no news until `complete`: readers keep what they know until then.
  if redis.call('HGET', keys.meta, 'complete') == '1' then redis.call('PUBLISH', argv[4], argv[5]) end
  return version
end

-- Refuse a reader that fills a copy which has since been lost or begun again.
local function lost(key, copy)
  if redis.call('HGET', key, 'copy') ~= copy then return redis.error_reply('CATALOGINCOMPLETE') end
end

-- KEYS and ARGV of bring_in; the token is of the copy that this is for, or "" for any.
local function apply(given, argv)
  local refused = argv[6] ~= '' and lost(given[1], argv[6]) or crowded(BROUGHT_IN)
  return refused or bring_in(given, argv, put)
end

-- As apply, for retired names only, skipping those that are not here. Runs even if memory is full, since it frees some.
local function retire(given, argv) return bring_in(given, argv, put_known) end

local function incomplete(key)
  if redis.call('HGET', key, 'complete') ~= '1' then return redis.error_reply('CATALOGINCOMPLETE') end
end

-- KEYS: as for apply   ARGV: prefix of leaf keys, URI of the manifests, token, how many leaves to delete at most
-- Begin an incomplete copy of these manifests. First delete what is here, the last leaves first: it is from other
-- manifests, or from these and may hold names whose retirement is no longer in them. Returns 0 while some of it is
-- left: call again.
local function begin(given, argv)
  local keys, refused = named(given), removed(given)
  if refused then return refused end
  redis.call('HDEL', keys.meta, 'complete')
  for _, leaf in ipairs(redis.call('ZRANGE', keys.directory, -argv[4], -1)) do
    redis.call('UNLINK', argv[1] .. leaf)
  end
  redis.call('ZREMRANGEBYRANK', keys.directory, -argv[4], -1)
  if redis.call('EXISTS', keys.directory) == 1 then return 0 end
  redis.call('UNLINK', keys.roots, keys.root_numbers, keys.labels, keys.label_numbers)
  redis.call('HDEL', keys.meta, 'count', 'older', 'retired', 'settled', 'through')
  -- `tallied`: earlier versions did not count everything that is counted now, and do not set it.
  redis.call('HSET', keys.meta, 'manifests', argv[2], 'copy', argv[3], 'tallied', argv[3])
  return 1
end

-- KEYS: catalog   ARGV: token of the copy, the largest sequence in the manifests, channel, news, the last settled one
-- Mark the copy complete; sequences given from now on are larger than the largest. Returns the catalog's new version.
local function complete(keys, argv)
  local refused = lost(keys[1], argv[1])
  if refused then return refused end
  local last = tonumber(redis.call('HGET', keys[1], 'sequence') or '0')
  last = string.format('%.0f', math.max(last, tonumber(argv[2])))
  redis.call('HSET', keys[1], 'sequence', last, 'through', argv[5], 'complete', 1)
  redis.call('PUBLISH', argv[3], argv[4])
  return redis.call('HINCRBY', keys[1], 'version', 1)
end

-- KEYS: catalog   ARGV: count, URI of the manifests that they are for or ""
-- Reserve that many consecutive sequences and return the first. They are microseconds since 1970, so that they keep
-- growing even if Redis has lost the last one. None is settled.
local function sequences(keys, argv)
  local refused = incomplete(keys[1]) or moved(keys[1], argv[2])
  if refused then return refused end
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
  local known = redis.call('HMGET', keys[1], 'sequence', 'through')
  local first = math.max(now, tonumber(known[1] or '0') + 1, tonumber(known[2] or '0') + 1)
  redis.call('HSET', keys[1], 'sequence', string.format('%.0f', first + tonumber(argv[1]) - 1))
  return string.format('%.0f', first)
end

local function registering(keys, argv) return crowded(REGISTERED) or sequences(keys, argv) end

-- Return a state preceded by the texts of its root and labels, each after its length, as one string.
local function told(keys, value)
  local root, label = struct.unpack('>I2I2', value, 15)
  root, label = redis.call('HGET', keys.roots, root) or '', redis.call('HGET', keys.labels, label) or ''
  return struct.pack('>I2c0I2c0', #root, root, #label, label) .. value
end

-- Return "" if there is no such name, or it lacks this ID ("": any), else the result of `told`; for a retired name,
-- whatever the ID, its retired state.
local function state_of(keys, prefix, name, id)
  local leaf = leaf_of(keys.directory, name)
  local value = leaf and redis.call('HGET', prefix .. leaf, name)
  if value and id ~= '' and id_of(value) ~= id and id_of(value) ~= RETIRED then
    value = redis.call('HGET', prefix .. leaf, name .. '@' .. id)
  end
  if not value then return '' end
  return id_of(value) == RETIRED and '\0\0\0\0' .. value or told(keys, value)
end

-- KEYS: as for apply   ARGV: prefix of leaf keys, then name and ID, or "", of each. Returns each one's `state_of`.
local function find(given, argv)
  local keys, found = named(given), {}
  local refused = incomplete(keys.meta)
  if refused then return refused end
  for i = 2, #argv, 2 do found[#found + 1] = state_of(keys, argv[1], argv[i], argv[i + 1]) end
  return found
end

-- KEYS: as for apply   ARGV: prefix of leaf keys, then name and ID of each state. Returns the states' sequences, 8
-- bytes each; zeros for a state that is not here.
local function since(given, argv)
  local keys, found = named(given), {}
  local refused = incomplete(keys.meta)
  if refused then return refused end
  for i = 2, #argv, 2 do
    local leaf = leaf_of(keys.directory, argv[i])
    local value = leaf and redis.call('HGET', argv[1] .. leaf, argv[i])
    if value and id_of(value) ~= argv[i + 1] then
      value = redis.call('HGET', argv[1] .. leaf, argv[i] .. '@' .. argv[i + 1])
    end
    found[#found + 1] = value and string.sub(value, 1, 8) or string.rep('\0', 8)
  end
  return table.concat(found)
end

-- KEYS: as for apply   ARGV: prefix of leaf keys, then names. Returns the names that are not here or are retired.
local function absent(given, argv)
  local keys, found = named(given), {}
  local refused = incomplete(keys.meta)
  if refused then return refused end
  for i = 2, #argv do
    local leaf = leaf_of(keys.directory, argv[i])
    local value = leaf and redis.call('HGET', argv[1] .. leaf, argv[i])
    if not value or id_of(value) == RETIRED then found[#found + 1] = argv[i] end
  end
  return found
end

-- KEYS: as for apply   ARGV: prefix of leaf keys, name, leaves at most. Returns where the next leaf begins ("" after
-- the last), [number, root...], [number, labels...] and the leaves from that of `name` on, each [field, value...].
local function leaves(given, argv)
  local keys = named(given)
  local refused = incomplete(keys.meta)
  if refused then return refused end
  local first = leaf_of(keys.directory, argv[2])
  if not first then return { '', {}, {} } end
  local count = tonumber(argv[3])
  local found = redis.call('ZRANGEBYLEX', keys.directory, '[' .. first, '+', 'LIMIT', 0, count + 1)
  local answer, seen = { found[count + 1] or '', {}, {} }, { {}, {} }
  for i = 1, math.min(count, #found) do
    local all = redis.call('HGETALL', argv[1] .. found[i])
    for j = 2, #all, 2 do
      if id_of(all[j]) ~= RETIRED then
        local root, label = struct.unpack('>I2I2', all[j], 15)
        seen[1][root], seen[2][label] = true, true
      end
    end
    answer[3 + i] = all
  end
  for kind, key in ipairs({ keys.roots, keys.labels }) do
    seen[kind][INLINE] = nil  -- stands for an inline text; no text has this number
    for number in pairs(seen[kind]) do
      local list = answer[1 + kind]
      list[#list + 1], list[#list + 2] = number, redis.call('HGET', key, number) or ''
    end
  end
  return answer
end

-- When memory is full, Redis refuses functions without a flag, so no client can make the catalog exceed it.
redis.register_function('LIBRARY_apply', apply)
redis.register_function('LIBRARY_begin', begin)
redis.register_function('LIBRARY_complete', complete)
redis.register_function('LIBRARY_sequences', registering)
redis.register_function{ function_name = 'LIBRARY_retire', callback = retire, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'LIBRARY_retiring', callback = sequences, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'LIBRARY_find', callback = find, flags = { 'no-writes' } }
redis.register_function{ function_name = 'LIBRARY_since', callback = since, flags = { 'no-writes' } }
redis.register_function{ function_name = 'LIBRARY_absent', callback = absent, flags = { 'no-writes' } }
redis.register_function{ function_name = 'LIBRARY_leaves', callback = leaves, flags = { 'no-writes' } }
