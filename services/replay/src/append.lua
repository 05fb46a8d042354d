-- Compare-and-append: one batch of one partition, its threads, trimming and expiry, in one atomic step.
--
-- KEYS  1 meta, 2 log, 3 directory, then for each thread its hash and its index
-- ARGV  1 epoch, 2 link ('' at the beginning of a log), 3 last offset, 4 records, 5 encoded batch,
--       6 age in ms, 7 most records, 8 most bytes, 9 greatest Kafka timestamp in the batch,
--       10 last offset as 8 bytes, 11 number of threads, then for each thread 14: name, tenant, records,
--       first and last Kafka time, status, graph, errors, tokens, cost, index entry, last offset,
--       offset of the newest whole state, that record
--       ('' where there is nothing to say)
-- Returns {outcome, epoch, last offset held, when it was stored in ms since 1970 or ''}; outcome is 'stored',
-- 'epoch' or 'link'. Offsets are compared as text: Lua's numbers are doubles.
local INDEX_BYTES_MAX, ENTRY_BYTES = 65536, 16

local meta = redis.call('HMGET', KEYS[1], 'e', 'l', 'n', 'b', 't', 'f', 'm')
local epoch, held = meta[1] or '', meta[2] or ''
if epoch ~= ARGV[1] then return {'epoch', epoch, held, ''} end
if held ~= ARGV[2] then return {'link', epoch, held, ''} end

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local age = tonumber(ARGV[6])
local had = tonumber(meta[3] or '0')
local records = had + tonumber(ARGV[4])
local bytes = tonumber(meta[4] or '0') + #ARGV[5]
local oldest, first = tonumber(meta[5] or now), meta[6] or ARGV[10]
if had == 0 then oldest, first = now, ARGV[10] end
local newest_time = math.max(tonumber(meta[7] or '0'), tonumber(ARGV[9]))

local function text(number) return string.format('%.0f', number) end

-- The entry's id is the last offset plus one, so that offset 0 has one too. Added digit by digit.
local digits, carry = {}, 1
for i = #ARGV[3], 1, -1 do
  local digit = string.byte(ARGV[3], i) - 48 + carry
  carry = digit > 9 and 1 or 0
  digits[i] = digit % 10
end
local id = (carry == 1 and '1' or '') .. table.concat(digits)
redis.call('XADD', KEYS[2], id .. '-0', 'd', ARGV[5], 'n', ARGV[4], 't', text(now), 'i', ARGV[10],
  'm', text(newest_time))

-- Whole batches go, oldest first; the newest stays. Bounded for each append: what is left goes with the next.
for _ = 1, 16 do
  local due = records > tonumber(ARGV[7]) or bytes > tonumber(ARGV[8]) or oldest + age <= now
  if not due then break end
  local head = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 2)
  if #head < 2 then -- what else was counted is not there
    records, bytes, oldest, first = tonumber(ARGV[4]), #ARGV[5], now, ARGV[10]
    break
  end
  redis.call('XDEL', KEYS[2], head[1][1])
  records = records - tonumber(head[1][2][4])
  bytes = bytes - #head[1][2][2]
  oldest, first = tonumber(head[2][2][6]), head[2][2][8]
end

redis.call('HSET', KEYS[1], 'l', ARGV[3], 'n', text(records), 'b', text(bytes), 't', text(oldest),
  'a', text(now), 'f', first, 'm', text(newest_time))

-- Everything that this append wrote ends at one moment: when the batch is due.
local deadline = text(now + age)
local function expire(key) redis.call('PEXPIREAT', key, deadline) end
expire(KEYS[1])
expire(KEYS[2])

-- A thread's place in the directory is renewed once a second, or more often where little time is kept.
local listed = math.min(1000, math.floor(age / 32))

-- Lua's own comparison follows the server's locale.
local function less(a, b)
  for i = 1, 8 do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return false
end

local function touch_thread(key, index, at)
  local was = redis.call('HMGET', key, 'e', 'n', 'errors', 'tokens', 'cost', 'd')
  local new = was[1] ~= epoch
  if new and was[1] then
    redis.call('UNLINK', key, index)
    was = {}
  end
  local fields = {'n', text(tonumber(was[2] or '0') + tonumber(ARGV[at + 2])), 'last', ARGV[at + 4],
    'o', ARGV[at + 11]}
  local function set(name, value) fields[#fields + 1] = name; fields[#fields + 1] = value end
  if new then set('e', epoch); set('tenant', ARGV[at + 1]); set('first', ARGV[at + 3]) end
  if ARGV[at + 5] ~= '' then set('status', ARGV[at + 5]) end
  if ARGV[at + 6] ~= '' then set('graph', ARGV[at + 6]) end
  if ARGV[at + 7] ~= '' then set('errors', text(tonumber(was[3] or '0') + tonumber(ARGV[at + 7]))) end
  if ARGV[at + 8] ~= '' then set('tokens', text(tonumber(was[4] or '0') + tonumber(ARGV[at + 8]))) end
  if ARGV[at + 9] ~= '' then
    set('cost', string.format('%.17g', tonumber(was[5] or '0') + tonumber(ARGV[at + 9])))
  end
  if ARGV[at + 12] ~= '' then set('wo', ARGV[at + 12]); set('w', ARGV[at + 13]) end
  local list = new or now - tonumber(was[6] or '0') >= listed
  if list then set('d', text(now)) end
  redis.call('HSET', key, unpack(fields))
  local length = redis.call('APPEND', index, ARGV[at + 10])
  if length > INDEX_BYTES_MAX then
    local entries = redis.call('GET', index)
    local keep = 1
    while keep < length and less(string.sub(entries, keep, keep + 7), first) do keep = keep + ENTRY_BYTES end
    if keep > 1 then redis.call('SET', index, string.sub(entries, keep)) end
  end
  expire(key)
  expire(index)
  return list
end

local active = {}
for i = 0, tonumber(ARGV[11]) - 1 do
  if touch_thread(KEYS[4 + 2 * i], KEYS[5 + 2 * i], 12 + 14 * i) then
    active[#active + 1] = text(now)
    active[#active + 1] = ARGV[12 + 14 * i]
  end
  if #active >= 1000 then redis.call('ZADD', KEYS[3], unpack(active)); active = {} end
end
if #active > 0 then redis.call('ZADD', KEYS[3], unpack(active)) end
if tonumber(ARGV[11]) > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', text(now - age - listed))
  expire(KEYS[3])
end
return {'stored', epoch, ARGV[3], text(now)}
