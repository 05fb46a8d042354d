-- Finds where to begin for a reader who wants records from a time on: behind the last batch before the first
-- one that holds a record of that time or later.
--
-- KEYS  1 meta, 2 log
-- ARGV  1 time in ms since 1970
-- Returns {epoch, last offset held, that batch or '' at the beginning, '1' when all records are earlier}.
-- The times of entries are running maxima, so they ascend and can be halved; the halving is by approximate
-- ids (doubles), the answer is exact.
local meta = redis.call('HMGET', KEYS[1], 'e', 'l', 'm')
local answer = {meta[1] or '', meta[2] or '', '', '0'}
local want = tonumber(ARGV[1])
if not meta[3] or tonumber(meta[3]) < want then
  answer[4] = '1'
  return answer
end
local function first_from(id) return redis.call('XRANGE', KEYS[2], id, '+', 'COUNT', 1)[1] end
local function number(id) return tonumber(string.match(id, '^%d+')) end
local low = first_from('-')
if not low or tonumber(low[2][10]) >= want then return answer end
-- Invariant: `low` is earlier than the time wanted; an entry at or behind `high` is not.
local high = number(redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1][1])
while true do
  local middle = math.floor((number(low[1]) + high) / 2)
  if middle <= number(low[1]) then break end
  local entry = first_from(string.format('%.0f', middle))
  if not entry or tonumber(entry[2][10]) >= want then
    high = middle
  else
    low = entry
  end
end
-- Doubles may have stopped a little short.
while true do
  local next = first_from('(' .. low[1])
  if not next or tonumber(next[2][10]) >= want then break end
  low = next
end
answer[3] = low[2][2]
return answer
