-- Empty the view, whole, and say of which logs the next one is and that its places are before their
-- beginning, so that nobody who writes at the same time leaves anything of the old behind.
--
-- KEYS  1 positions
-- ARGV  1 number of patterns   2… patterns of the keys that go, then fields and values of the
--       positions

local patterns = tonumber(ARGV[1])
for i = 2, patterns + 1 do
  local cursor = '0'
  repeat
    local found = redis.call('SCAN', cursor, 'MATCH', ARGV[i], 'COUNT', '1000')
    cursor = found[1]
    for _, key in ipairs(found[2]) do
      redis.call('DEL', key)
    end
  until cursor == '0'
end
for i = patterns + 2, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
return 1
