-- Opens a partition for a writer: says its epoch and what it holds, and opens a new epoch where the log held
-- belongs to an earlier life of the topic. A store that knows an earlier epoch than the writer lost the opening of
-- the later one: what it holds is of that earlier life.
--
-- KEYS  1 meta, 2 log, 3 directory
-- ARGV  1 epoch that the writer knows ('' for none), 2 epoch to mint, 3 high watermark ('' for unknown),
--       4 age in ms, 5 and 6 epoch and offset of a record that the source has otherwise ('' for none),
--       7 last offset in the epoch that the writer knows, where retention has let all up to it go ('' for none)
-- Returns {epoch, last offset held, '1' for a new epoch, 'mint' when the minted one is not later than the log's,
-- newest batch or ''}.
local function less(a, b) -- decimal texts without leading zeros
  if #a ~= #b then return #a < #b end
  return a < b
end

local function begin(epoch)
  redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
  redis.call('HSET', KEYS[1], 'e', epoch)
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end

local meta = redis.call('HMGET', KEYS[1], 'e', 'l')
local epoch, held = meta[1] or '', meta[2] or ''
if epoch == '' or ARGV[1] ~= '' and less(epoch, ARGV[1]) then
  epoch, held = ARGV[1] ~= '' and ARGV[1] or ARGV[2], ''
  begin(epoch)
end
if held == '' and ARGV[7] ~= '' and epoch == ARGV[1] then
  held = ARGV[7]
  redis.call('HSET', KEYS[1], 'l', held)
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
local restarted = held ~= '' and ARGV[3] ~= '' and not less(held, ARGV[3])
local diverged = held ~= '' and held == ARGV[6] and epoch == ARGV[5]
if restarted or diverged then
  -- A clock that went back: the caller mints a later one.
  if not less(epoch, ARGV[2]) then return {epoch, held, 'mint', ''} end
  begin(ARGV[2])
  return {ARGV[2], '', '1', ''}
end
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
return {epoch, held, '0', newest and newest[2][2] or ''}
