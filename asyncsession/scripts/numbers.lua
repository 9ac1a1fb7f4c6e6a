-- Goes before every script: the measures of the format, and its big-endian numbers.

local sub, byte, char = string.sub, string.byte, string.char
local LIVE = 'aS\1L' -- magic, format and kind of a live session
local HEAD, HEADER, TRAILER = 12, 40, 22
local LARGE = 4096 -- bytes from which on it saves time to read and to write no more than is needed
local MANY = 512 -- commits
-- No blob is longer: four times the largest `max_bytes`, the list of commit ids, and room behind.
local LONGEST = 71372800

-- Reads a number of 2, 4 or 6 bytes.
local function number(text, at, size)
  local a, b, c, d, e, f = byte(text, at, at + size - 1)
  if f then return ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f end
  if d then return ((a * 256 + b) * 256 + c) * 256 + d end
  return a * 256 + b
end
