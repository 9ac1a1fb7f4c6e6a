-- Reads what another library keeps under a key, and for how long. Writes nothing.
--
-- KEYS[1]   the key, on that library's server
-- ARGV[1]   how many bytes are read at the most
--
-- Returns   {code, now, data}
--   OK         data: the bytes, and the ms that they will be kept (-1: for ever)
--   GONE       nothing there
--   TOO_LARGE  more than may be read
--   UNREADABLE not a string

local OK, GONE, TOO_LARGE, UNREADABLE = 1, 4, 6, 8

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'none' then return {GONE, now, ''} end
if kind ~= 'string' then return {UNREADABLE, now, ''} end
local value = redis.call('GETRANGE', KEYS[1], 0, ARGV[1])
if #value > tonumber(ARGV[1]) then return {TOO_LARGE, now, ''} end
return {OK, now, {value, redis.call('PTTL', KEYS[1])}}
