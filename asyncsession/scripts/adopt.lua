-- Takes a session over from another library, once: writes it together with a mark that says so.
-- Whoever comes later is told what the mark holds, and nothing changes.
--
-- KEYS[1]   the mark
-- KEYS[2]   the session, under a key that is in no other use; left out to look for the mark only
-- ARGV[1]   what the mark shall hold: magic (2), format (1), kind (1) and more; to look, these four
-- ARGV[2]   how long the mark stays, ms; 0 for ever
-- ARGV[3]   head: magic (2), format (1), kind (1) and incarnation (8) of the live session
-- ARGV[4]   frame, without its stamp and commit id
-- ARGV[5]   commit id: 16 random bytes
-- ARGV[6]   idle timeout, ms
-- ARGV[7]   absolute timeout, ms
-- ARGV[8]   issued: ms on the server's clock when this was first sent, as the sender knew it
--
-- Returns   {code, now, data}
--   OK         it is taken over, by this request or before; data: what the mark holds
--   GONE       there is no mark, and it was only looked for
--   LATE       not done: outside its window
--   UNREADABLE what is there is no mark of this format

local OK, GONE, LATE, UNREADABLE = 1, 4, 7, 8
local SLACK = 1000 -- ms that a sender's idea of this clock may run ahead of it
local WINDOW = 15000 -- ms: copies of this request that come later after it was issued do nothing

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local mark = look(KEYS[1])
if mark then
  if sub(mark, 1, 4) ~= sub(ARGV[1], 1, 4) or #mark > 64 then return {UNREADABLE, now, ''} end
  -- Written once more as it is, so that this connection has written, too: WAIT looks no further.
  if KEYS[2] then redis.call('SETRANGE', KEYS[1], 0, sub(mark, 1, 1)) end
  return {OK, now, mark}
end
if not KEYS[2] then return {GONE, now, ''} end

local issued = tonumber(ARGV[8])
if issued > now + SLACK or now > issued + WINDOW then return {LATE, now, ''} end
local header = ARGV[3] .. bytes(now, 6) .. bytes(now + ARGV[7], 6) .. string.rep('\0', 16)
redis.call('SET', KEYS[2], header .. ARGV[4] .. bytes(now, 6) .. ARGV[5], 'PX', ARGV[6])
if ARGV[2] == '0' then
  redis.call('SET', KEYS[1], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return {OK, now, ARGV[1]}
