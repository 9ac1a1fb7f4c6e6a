-- Reads a session, puts off its idle timeout and notes that it was seen, each at most once in a
-- touch interval. The timeout is never shortened, and never reaches past the absolute deadline.
-- When a session was seen is the stamp of its last frame, which moves forward for that.
--
-- KEYS[1]   the session
-- ARGV[1]   head: magic (2) and format (1) that the caller can read
-- ARGV[2]   idle timeout, ms; 0 to look only, and to write nothing
-- ARGV[3]   touch interval, ms
--
-- Returns   {code, now, data}
--   OK         data: header and whole log
--   GONE       nothing there, destroyed, or past its deadline
--   MOVED      rotated away; data: the handle of the successor
--   UNREADABLE what is there is not of this format

local OK, GONE, MOVED, UNREADABLE = 1, 4, 5, 8

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local blob = read(KEYS[1])
if not blob then return {GONE, now, ''} end
local kind = string.sub(blob, 4, 4)
local is_ours = string.sub(blob, 1, 2) == string.sub(ARGV[1], 1, 2)
if is_ours and kind == 'D' and #blob == HEAD then return {GONE, now, ''} end -- of any format
if string.sub(blob, 1, 3) ~= ARGV[1] then return {UNREADABLE, now, ''} end
if kind == 'M' then return {MOVED, now, string.sub(blob, HEAD + 1, HEAD + HANDLE)} end
local log = kind == 'L' and before_log(blob)
if not log then return {UNREADABLE, now, ''} end

local left = number(blob, 19, 6) - now
if left <= 0 then return {GONE, now, ''} end
local ttl = math.min(tonumber(ARGV[2]), left)
local current = redis.call('PTTL', KEYS[1])
if current >= 0 and ttl - current >= tonumber(ARGV[3]) and ttl > current then
  local _, refused = attempt('PEXPIRE', KEYS[1], string.format('%.0f', ttl))
  if refused then return refused end
end

local stamp = #blob - TRAILER + 1
if ttl > 0 and now - number(blob, stamp, 6) >= tonumber(ARGV[3]) and is_whole(blob, log) then
  local done, refused = attempt('SETRANGE', KEYS[1], stamp - 1, bytes(now, 6))
  if refused then return refused end
  if done then blob = string.sub(blob, 1, stamp - 1) .. bytes(now, 6) .. string.sub(blob, stamp + 6) end
end
if log == HEADER then return {OK, now, blob} end
return {OK, now, string.sub(blob, 1, HEADER) .. string.sub(blob, log + 1)}
