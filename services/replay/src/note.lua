-- Notes until when partitions are kept. The list lives as long as the longest of them, and no longer.
--
-- KEYS  1 partitions
-- ARGV  for each partition: when it vanishes, in ms since 1970, and its id
redis.call('ZADD', KEYS[1], unpack(ARGV))
local clock = redis.call('TIME')
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', clock[1] * 1000))
local longest = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
if longest[2] then redis.call('PEXPIREAT', KEYS[1], longest[2]) end
return 0
