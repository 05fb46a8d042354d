-- Compare-and-append: one batch of one partition, with its trimming and expiry, in one atomic step.
--
-- KEYS  1 meta (hash), 2 log (stream)
-- ARGV  1 epoch, 2 link ('' at the beginning of a log), 3 last offset, 4 records, 5 encoded batch,
--       6 retention in ms, 7 most records, 8 most bytes
-- Returns {outcome, epoch, last offset held}; outcome is 'stored', 'epoch' or 'link'. Offsets are compared as
-- text: Lua's numbers are doubles.
local meta = redis.call('HMGET', KEYS[1], 'e', 'l', 'n', 'b', 't')
local epoch, held = meta[1] or '', meta[2] or ''
if epoch ~= ARGV[1] then return {'epoch', epoch, held} end
if held ~= ARGV[2] then return {'link', epoch, held} end

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local retention = tonumber(ARGV[6])
local records = tonumber(meta[3] or '0') + tonumber(ARGV[4])
local bytes = tonumber(meta[4] or '0') + #ARGV[5]
local oldest = tonumber(meta[5] or now)

-- The entry's id is the last offset plus one, so that offset 0 has one too. Added digit by digit.
local digits, carry = {}, 1
for i = #ARGV[3], 1, -1 do
  local digit = string.byte(ARGV[3], i) - 48 + carry
  carry = digit > 9 and 1 or 0
  digits[i] = digit % 10
end
local id = (carry == 1 and '1' or '') .. table.concat(digits)
redis.call('XADD', KEYS[2], id .. '-0', 'd', ARGV[5], 'n', ARGV[4], 't', string.format('%.0f', now))

-- Whole batches go, oldest first; the newest stays. Bounded for each append: what is left goes with the next.
for _ = 1, 16 do
  local due = records > tonumber(ARGV[7]) or bytes > tonumber(ARGV[8]) or oldest + retention <= now
  if not due then break end
  local head = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 2)
  if #head < 2 then oldest = now break end
  redis.call('XDEL', KEYS[2], head[1][1])
  records = records - tonumber(head[1][2][4])
  bytes = bytes - #head[1][2][2]
  oldest = tonumber(head[2][2][6])
end

redis.call('HSET', KEYS[1], 'l', ARGV[3], 'n', string.format('%.0f', records),
  'b', string.format('%.0f', bytes), 't', string.format('%.0f', oldest))
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('PEXPIRE', KEYS[2], ARGV[6])
return {'stored', epoch, ARGV[3]}
