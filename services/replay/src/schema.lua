-- Sets or deletes one expected schema of a tenant, where it has the version that is expected, in one atomic step.
--
-- KEYS  1 schemas
-- ARGV  1 name of the graph, 2 version expected ('' for any, 0 for none), 3 what to set ('' to delete),
--       4 its version, 5 most schemas, 6 lifetime in ms
-- Returns 'done', 'absent', 'conflict' or 'full'. Versions are compared as text: Lua's numbers are doubles.
local held = redis.call('HGET', KEYS[1], ARGV[1])
local version = held and string.match(held, '^(%d+) ') or '0'
local is_deletion = ARGV[3] == ''

if is_deletion and not held then return 'absent' end
-- Done before, and the answer was lost.
if not is_deletion and version == ARGV[4] then return 'done' end
if ARGV[2] ~= '' and ARGV[2] ~= version then return 'conflict' end

if is_deletion then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  if not held and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[5]) then return 'full' end
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
end
redis.call('PEXPIRE', KEYS[1], ARGV[6])
return 'done'
