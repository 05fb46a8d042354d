-- Reads batches of one partition together with its head, so that both are of the same moment.
--
-- KEYS  1 meta, 2 log
-- ARGV  1 first entry id to read, 2 most bytes; at least one batch is read; 0 reads none,
--       3 epoch that the reader is in ('' for any)
-- Returns {epoch, last offset held, records that the head counts, oldest batch when the reader is in another
-- epoch, then for each batch: it, and when it was stored in ms since 1970}.
--
-- A replica may lag, and what is read here says where the log ends.
if string.find(redis.call('INFO', 'replication'), 'role:slave', 1, true) then
  return redis.error_reply('READONLY this node is a replica')
end
local meta = redis.call('HMGET', KEYS[1], 'e', 'l', 'n')
local answer = {meta[1] or '', meta[2] or '', meta[3] or '0', ''}
if ARGV[3] ~= '' and ARGV[3] ~= answer[1] then
  local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)
  if oldest[1] then answer[4] = oldest[1][2][2] end
  return answer
end
local most, bytes, from = tonumber(ARGV[2]), 0, ARGV[1]
while bytes < most do
  local entries = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', 4)
  for _, entry in ipairs(entries) do
    local batch = entry[2][2]
    if bytes > 0 and bytes + #batch > most then return answer end
    answer[#answer + 1] = batch
    answer[#answer + 1] = entry[2][6]
    bytes = bytes + #batch
    from = '(' .. entry[1]
  end
  if #entries < 4 then break end
end
return answer
