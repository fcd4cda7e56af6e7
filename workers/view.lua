-- One change of the view: check the place, check the version, write, and
-- record the place.
--
-- KEYS  1 positions   2… what the operation writes
-- ARGV  1 operation   2 "<topic>/<partition>"   3 offset believed to be applied last   4 new offset
--       5… as the operation says
-- Returns 1 applied, 0 nothing new, -1 the view is gone, -2 the view is elsewhere; to count, how many
-- sources were forgotten.
-- Plain commands only: Redis 6.2 and Valkey both run this.

local at = redis.call('HGET', KEYS[1], ARGV[2])
if not at then return -1 end
if at ~= ARGV[3] then return -2 end
if tonumber(ARGV[4]) <= tonumber(at) then return 0 end

local function newer(key, field, value)
  local known = tonumber(redis.call('HGET', key, field) or '')
  return known == nil or tonumber(value) > known
end

local function write(key, first)
  for i = first, #ARGV, 2 do
    redis.call('HSET', key, ARGV[i], ARGV[i + 1])
  end
end

local operation = {}

-- KEYS 2 hash, 3 active, 4 log
-- ARGV 5 id, 6 version, 7 timestamp ms, 8 expiry ms or '', 9 '1' if the state changed, 10 from,
--      11 to, 12 by, 13 reason, 14… fields and values
function operation.incident()
  if not newer(KEYS[2], 'version', ARGV[6]) then return 0 end
  write(KEYS[2], 14)
  if ARGV[8] == '' then
    redis.call('ZADD', KEYS[3], ARGV[7], ARGV[5])
    redis.call('PERSIST', KEYS[2])
  else
    redis.call('ZREM', KEYS[3], ARGV[5])
    redis.call('PEXPIREAT', KEYS[2], ARGV[8])
  end
  if ARGV[9] == '1' then
    redis.call('XADD', KEYS[4], 'MAXLEN', '~', '100000', '*', 'incident', ARGV[5],
      'from', ARGV[10], 'to', ARGV[11], 'version', ARGV[6], 'by', ARGV[12], 'reason', ARGV[13])
  end
  return 1
end

-- The rule of every reader (nnsec/trust/statements.py): a higher epoch counts; its activation only
-- of the checkpoint that was prepared first.
-- KEYS 2 hash; ARGV 5 epoch, 6 phase, 7 '<epoch> <version> <digest>', 8… fields and values of the
--      active checkpoint
function operation.model()
  local prepared = redis.call('HGET', KEYS[2], 'prepared') or ''
  local waits = tonumber(string.match(prepared, '^%d+') or '')
  local ahead = newer(KEYS[2], 'epoch', ARGV[5]) and (not waits or tonumber(ARGV[5]) > waits)
  if not ahead and (ARGV[6] ~= 'activate' or ARGV[7] ~= prepared) then return 0 end
  if ARGV[6] == 'activate' then
    write(KEYS[2], 8)
    redis.call('HSET', KEYS[2], 'prepared', '')
    return 1
  end
  for _, field in ipairs({'version', 'digest', 'epoch', 'since'}) do
    redis.call('HSETNX', KEYS[2], field, '')
  end
  redis.call('HSET', KEYS[2], 'state', 'preparing', 'prepared', ARGV[7])
  return 1
end

-- KEYS 2 hash; ARGV 5 version, 6… fields and values
function operation.source()
  if not newer(KEYS[2], 'version', ARGV[5]) then return 0 end
  write(KEYS[2], 6)
  redis.call('HSETNX', KEYS[2], 'accepted', '0')
  redis.call('HSETNX', KEYS[2], 'quarantined', '0')
  redis.call('PERSIST', KEYS[2])
  return 1
end

-- Have a source of which only counts are known go when the log holds nothing of it any more. Not
-- before a day is over: a replay reads old records at once, and they must add up.
local function keep(key, expiry)
  local time, left = redis.call('TIME'), redis.call('PTTL', key)
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local due = math.max(tonumber(expiry), now + 86400000)
  if left < 0 or due > now + left then
    redis.call('PEXPIREAT', key, string.format('%.0f', due))
  end
end

-- Drop the counts of this partition, unless a statement was made about their source.
local function forget(key)
  if redis.call('HGET', key, 'version') ~= '' then return 0 end
  local other = ARGV[5] == 'accepted' and 'quarantined' or 'accepted'
  if redis.call('HGET', key, other) == '0' then
    redis.call('DEL', key)
  else
    redis.call('HSET', key, ARGV[5], '0')
  end
  return 1
end

-- Record by record, not in sums: which source is forgotten must not depend on how the log was cut.
-- KEYS 2 sources counted in this partition, 3… one hash a record
-- ARGV 5 'accepted' or 'quarantined', 6 how many sources are counted, 7… rows, offset and expiry ms
--      of each record
function operation.count()
  local forgotten = 0
  for i = 3, #KEYS do
    local key, first = KEYS[i], 3 * i - 2
    local version = redis.call('HGET', key, 'version')
    if not version then
      redis.call('HSET', key, 'state', 'trusted', 'reason', '', 'incident', '', 'version', '',
        'accepted', '0', 'quarantined', '0')
    end
    redis.call('HINCRBY', key, ARGV[5], ARGV[first])
    if not version or version == '' then keep(key, ARGV[first + 2]) end
    redis.call('ZADD', KEYS[2], ARGV[first + 1], key)
    if redis.call('ZCARD', KEYS[2]) > tonumber(ARGV[6]) then
      forgotten = forgotten + forget(redis.call('ZPOPMIN', KEYS[2])[1])
    end
  end
  return forgotten
end

-- a record that changes nothing, or cannot be read
function operation.skip()
  return 0
end

-- Last: what Redis refuses has not been applied, whoever comes next.
local answer = operation[ARGV[1]]()
redis.call('HSET', KEYS[1], ARGV[2], ARGV[4])
return answer
