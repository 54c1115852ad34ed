// The state of a terminal: line settings, size, modes, and the data on its way between the two ends of a pseudo terminal.
// See ioctl_tty(2), pty(7), drivers/tty/{pty,tty_ioctl,n_tty}.c. On a master, the settings are those of its slave.

import type { TermiosEntry, WinsizeEntry } from "../../images/schema/messages.generated.ts";
import { FIONREAD } from "../../sys/abi/fcntl.ts";
import {
  EXTPROC,
  ICANON,
  IXON,
  NCCS,
  TCGETS,
  TCOOFF,
  TCOON,
  TCSETS,
  TCXONC,
  TERMIOS_SIZE,
  TIOCGLCKTRMIOS,
  TIOCGWINSZ,
  VMIN,
  VSTOP,
  WINSIZE_SIZE,
} from "../../sys/abi/tty.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { POLLIN, POLLOUT } from "../../sys/abi/poll.ts";
import { pollNow } from "../../sys/poll.ts";

const C_LFLAG = 12;
const C_LINE = 16;
const C_CC = 17;
/**
 * A worker of the kernel carries data from one end to the other, and goes by the settings at that time: they must stay until then. Poll
 * (n_tty_poll) waits for it, unless something to read is there already; then the worker has come to it, and new settings wait until it has
 * done with what came in one piece (n_tty_receive_buf_common holds termios_rwsem). Pieces are half a page (TTY_BUFFER_PAGE).
 */
export const ONE_PIECE = 1024;
/** With more than this waiting, poll does not wait for what is still on its way. */
const LARGEST_MIN = 255;
const MOVE_MILLISECONDS = 2;

export interface TtySettings {
  readonly termios: TermiosEntry;
  readonly termios_locked: TermiosEntry;
  readonly winsize: WinsizeEntry;
}

/** Settings of the terminal behind a descriptor of ours; undefined when it is hung up. */
export function readSettings(fd: number): TtySettings | undefined {
  const termios = Buffer.alloc(TERMIOS_SIZE);
  if (trySyscall("ioctl", fd, TCGETS, termios) < 0) return undefined;
  const locked = Buffer.alloc(TERMIOS_SIZE);
  syscall("ioctl", fd, TIOCGLCKTRMIOS, locked);
  const size = Buffer.alloc(WINSIZE_SIZE);
  syscall("ioctl", fd, TIOCGWINSZ, size);
  const [ws_row = 0, ws_col = 0, ws_xpixel = 0, ws_ypixel = 0] = [0, 2, 4, 6].map((at) =>
    size.readUInt16LE(at),
  );
  return {
    termios: termiosEntry(termios),
    termios_locked: termiosEntry(locked),
    winsize: { ws_row, ws_col, ws_xpixel, ws_ypixel },
  };
}

/** A number that an ioctl writes, 0 where the terminal has no such thing. */
export function readNumber(fd: number, request: number): number {
  const value = Buffer.alloc(4);
  return trySyscall("ioctl", fd, request, value) < 0 ? 0 : value.readInt32LE(0);
}

/** The kernel's termios as an entry; as CRIU does it, the 19 characters lie packed in the first of 19 words. */
export function termiosEntry(termios: Buffer): TermiosEntry {
  const packed = Buffer.alloc(NCCS * 4);
  termios.copy(packed, 0, C_CC, C_CC + NCCS);
  const [c_iflag = 0, c_oflag = 0, c_cflag = 0, c_lflag = 0] = [0, 4, 8, 12].map((at) =>
    termios.readUInt32LE(at),
  );
  return {
    c_iflag,
    c_oflag,
    c_cflag,
    c_lflag,
    c_line: termios.readUInt8(C_LINE),
    c_ispeed: 0,
    c_ospeed: 0,
    c_cc: Array.from({ length: NCCS }, (_, index) => packed.readUInt32LE(index * 4)),
  };
}

/** The reverse. */
export function termiosBytes(entry: TermiosEntry): Buffer {
  const bytes = Buffer.alloc(TERMIOS_SIZE);
  [entry.c_iflag, entry.c_oflag, entry.c_cflag, entry.c_lflag].forEach((flags, index) =>
    bytes.writeUInt32LE(flags, index * 4),
  );
  bytes.writeUInt8(entry.c_line & 0xff, C_LINE);
  const packed = Buffer.alloc(NCCS * 4);
  entry.c_cc.slice(0, NCCS).forEach((word, index) => packed.writeUInt32LE(word >>> 0, index * 4));
  packed.copy(bytes, C_CC, 0, NCCS);
  return bytes;
}

/** struct winsize. */
export function winsizeBytes({ ws_row, ws_col, ws_xpixel, ws_ypixel }: WinsizeEntry): Buffer {
  const bytes = Buffer.alloc(WINSIZE_SIZE);
  [ws_row, ws_col, ws_xpixel, ws_ypixel].forEach((value, index) =>
    bytes.writeUInt16LE(value & 0xffff, index * 2),
  );
  return bytes;
}

/**
 * Settings under which data can be put back as it was read: no echo, no signals, no translation, no special characters;
 * lines stay lines, since a change of ICANON would join all that waits into one.
 */
export function quietTermios(termios: Buffer): Buffer {
  const quiet = Buffer.from(termios);
  quiet.writeUInt32LE(0, 0);
  quiet.writeUInt32LE(0, 4);
  quiet.writeUInt32LE(termios.readUInt32LE(C_LFLAG) & ICANON, C_LFLAG);
  quiet.fill(0, C_CC, C_CC + NCCS);
  quiet.writeUInt8(LARGEST_MIN, C_CC + VMIN);
  return quiet;
}

/** What waits at each end of a pseudo terminal: as read from it. */
export interface DataInFlight {
  readonly atMaster: Buffer;
  readonly atSlave: Buffer;
  /** The slave's output is stopped. */
  readonly stopped: Stop | undefined;
}

/** Who stopped output can let it go on: whoever is at the master by a character (^S, ^Q), or a program by tcflow(3). */
export type Stop = typeof BY_CHARACTER | typeof BY_CALL;
const BY_CHARACTER = 1;
const BY_CALL = 2;

/** Whether a stop is made again by the character: only where that has its meaning. */
export function stopsByCharacter(termios: Buffer, stopped: number): boolean {
  const isOn = (termios.readUInt32LE(0) & IXON) !== 0;
  return stopped === BY_CHARACTER && isOn && (termios.readUInt32LE(C_LFLAG) & EXTPROC) === 0;
}

/** The character that stops output. */
export function stopCharacter(termios: Buffer): Buffer {
  return Buffer.of(termios.readUInt8(C_CC + VSTOP));
}

/**
 * The kernel tells nobody that output is stopped (n_tty_poll, pty_write_room): with nothing on its way there is no other reason that
 * the slave cannot be written. A stop by tcflow(3) is over then.
 */
function liftStop(slave: number): Stop | undefined {
  if (isWritable(slave)) return undefined;
  syscall("ioctl", slave, TCXONC, TCOON);
  return isWritable(slave) ? BY_CALL : BY_CHARACTER;
}

function stopAgain(master: number, slave: number, stopped: Stop): void {
  const termios = Buffer.alloc(TERMIOS_SIZE);
  syscall("ioctl", slave, TCGETS, termios);
  if (stopsByCharacter(termios, stopped)) syscall("write", master, stopCharacter(termios), 1);
  else syscall("ioctl", slave, TCXONC, TCOOFF);
}

function isWritable(fd: number): boolean {
  return (pollNow(fd, POLLOUT) & POLLOUT) !== 0;
}

/** Copies the data between two ends: takes it out, the unfinished line included, and puts it back. */
export function copyDataInFlight(master: number, slave: number): DataInFlight {
  const termios = Buffer.alloc(TERMIOS_SIZE);
  syscall("ioctl", slave, TCGETS, termios);
  // What is still on its way to the slave has its echo to come.
  letArrive(slave);
  const atMaster = drain(master);
  const stopped = liftStop(slave);
  const lines = drain(slave);
  const flags = termios.readUInt32LE(C_LFLAG);
  const parts = [lines];
  if ((flags & ICANON) !== 0) {
    const raw = Buffer.from(termios);
    raw.writeUInt32LE((flags & ~ICANON) >>> 0, C_LFLAG);
    syscall("ioctl", slave, TCSETS, raw);
    parts.push(drain(slave));
  }
  const atSlave = Buffer.concat(parts);
  if (atMaster.length + atSlave.length > 0) {
    // Without IXON no character has stopped anything.
    syscall("ioctl", slave, TCSETS, quietTermios(termios));
    if (atSlave.length > 0) syscall("write", master, atSlave, atSlave.length);
    if (atMaster.length > 0) syscall("write", slave, atMaster, atMaster.length);
    letArrive(slave);
    if (atSlave.length > ONE_PIECE) waitAMoment();
  }
  syscall("ioctl", slave, TCSETS, termios);
  if (stopped !== undefined) stopAgain(master, slave, stopped);
  return { atMaster, atSlave, stopped };
}

/** Reads what waits, without ever waiting itself. */
function drain(fd: number): Buffer {
  const parts: Buffer[] = [];
  for (;;) {
    // Polling makes the kernel hand over what it has queued for this end.
    pollNow(fd, POLLIN);
    const waiting = readNumber(fd, FIONREAD);
    if (waiting <= 0) return Buffer.concat(parts);
    const part = Buffer.alloc(waiting);
    const got = trySyscall("read", fd, part, waiting);
    if (got <= 0) return Buffer.concat(parts);
    parts.push(part.subarray(0, got));
  }
}

/** Waits until what was written to the other end has arrived: see ONE_PIECE. */
function letArrive(fd: number): void {
  pollNow(fd, POLLIN);
  // Asking for the number takes termios_rwsem, too (n_tty_ioctl).
  readNumber(fd, FIONREAD);
}

/** For the rest of what comes in several pieces, of which poll sees the first. */
function waitAMoment(): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, MOVE_MILLISECONDS);
}
