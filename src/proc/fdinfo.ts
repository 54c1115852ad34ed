// /proc/PID/fdinfo/FD: what the kernel tells about one open file: position, flags and mount for all, then
// lines that the object adds (show_fdinfo in fs/eventfd.c, fs/eventpoll.c, fs/signalfd.c, fs/timerfd.c,
// fs/notify/fdinfo.c, fs/pidfs.c, drivers/tty/pty.c, drivers/net/tun.c, and locks from fs/locks.c); see
// proc_pid_fdinfo(5). The numbers' bases differ from line to line and are not marked. Devices (`sdev`) are
// in the kernel's own encoding: the major number above 20 bits of minor.
import { readShortProcText, undefinedIfGone, undefinedIfUnsupported } from "./procfs.ts";
import { parseLock, type LockLine } from "./locks.ts";
import {
  parseFanotify,
  parseInotify,
  type FanotifyLine,
  type InotifyMark,
} from "./notify-marks.ts";

/** One file that an epoll watches. */
export interface EpollTarget {
  /** Descriptor number at the time of EPOLL_CTL_ADD; it may be another file's by now. */
  readonly tfd: number;
  readonly events: number;
  readonly data: bigint;
  readonly pos: bigint;
  /** Inode and device of the watched file; undefined before Linux 4.13. */
  readonly ino: bigint | undefined;
  readonly sdev: number | undefined;
}

export interface Timespec {
  readonly sec: number;
  readonly nsec: number;
}

export interface TimerfdInfo {
  readonly clockid: number;
  /** Expirations not read yet. */
  readonly ticks: bigint;
  /** TFD_TIMER_… flags of the last timerfd_settime. */
  readonly settimeFlags: number;
  /** Time to the next expiration, even when it was set as absolute; 0 and 0 when disarmed. */
  readonly value: Timespec;
  readonly interval: Timespec;
}

export interface EventfdInfo {
  readonly count: bigint;
  /** The kernel's number for this object: equal in two descriptors of one eventfd. */
  readonly id: number | undefined;
  /** EFD_SEMAPHORE; undefined before Linux 6.5. */
  readonly semaphore: boolean | undefined;
}

export interface PidfdInfo {
  /** Pid in the namespace of the reader's /proc; -1 when the process is reaped, 0 when it is not visible. */
  readonly pid: number;
  /** The pids from that namespace inwards; empty when the process is reaped. */
  readonly nsPid: readonly number[];
}

export interface FdInfo {
  readonly pos: bigint;
  /** Open flags with O_CLOEXEC. */
  readonly flags: number;
  readonly mntId: number;
  /** Undefined before Linux 5.14. */
  readonly ino: bigint | undefined;
  readonly eventfd: EventfdInfo | undefined;
  /** Of an epoll; empty for one that watches nothing and for every other file. */
  readonly epoll: readonly EpollTarget[];
  /** Of a signalfd: bit N-1 is signal N. */
  readonly sigmask: bigint | undefined;
  readonly inotify: readonly InotifyMark[];
  readonly fanotify: readonly FanotifyLine[];
  readonly timerfd: TimerfdInfo | undefined;
  readonly pidfd: PidfdInfo | undefined;
  /** File locks held through this open file or by this process on it. */
  readonly locks: readonly LockLine[];
  /** Of a pseudo terminal's master: the N of /dev/pts/N. */
  readonly ttyIndex: number | undefined;
  /** Of /dev/net/tun: the interface's name, "" when not attached. */
  readonly iff: string | undefined;
  /** All other lines, as they are. */
  readonly extra: readonly string[];
}

/** Which descriptor of which process. */
export interface FdName {
  readonly pid: number;
  readonly fd: number;
}

/** Reads the fdinfo of a descriptor; a closed one is KERNEL_FEATURE. Also NO_SUCH_PROCESS, NOT_PERMITTED, SYSCALL. */
export function readFdInfo(of: FdName): FdInfo {
  return parseFdInfo(readShortProcText(of.pid, `fdinfo/${of.fd}`));
}

/** Like readFdInfo; undefined when the process is gone or the descriptor closed. */
export function readFdInfoIfOpen(of: FdName): FdInfo | undefined {
  return undefinedIfGone(() => undefinedIfUnsupported(() => readFdInfo(of)));
}

/** Parses the text of an fdinfo file. */
export function parseFdInfo(text: string): FdInfo {
  return parsePlain(text) ?? parseLines(text);
}

/**
 * Of most files the kernel has four lines to tell and nothing more (of unix sockets a fifth one), and there may be thousands of them: a
 * regular expression would leave ten times as much behind.
 */
function parsePlain(text: string): FdInfo | undefined {
  if (!text.startsWith(POS)) return undefined;
  const flagsAt = text.indexOf(FLAGS, POS.length);
  const mntIdAt = text.indexOf(MNT_ID, flagsAt + FLAGS.length);
  const inoAt = text.indexOf(INO, mntIdAt + MNT_ID.length);
  const end = text.indexOf("\n", inoAt + INO.length);
  if (flagsAt < 0 || mntIdAt < 0 || inoAt < 0 || end < 0) return undefined;
  const isUnix = end < text.length - 1;
  if (isUnix && !(text.endsWith(NO_FDS) && end === text.length - NO_FDS.length)) return undefined;
  const pos = Number(text.slice(POS.length, flagsAt));
  const ino = Number(text.slice(inoAt + INO.length, end));
  const mntId = Number(text.slice(mntIdAt + MNT_ID.length, inoAt));
  if (!Number.isSafeInteger(pos) || !Number.isSafeInteger(ino) || !Number.isSafeInteger(mntId))
    return undefined;
  return {
    pos: pos === 0 ? 0n : BigInt(pos),
    flags: Number.parseInt(text.slice(flagsAt + FLAGS.length, mntIdAt), 8),
    mntId,
    ino: BigInt(ino),
    eventfd: undefined,
    epoll: NOTHING_MORE.epoll,
    sigmask: undefined,
    inotify: NOTHING_MORE.inotify,
    fanotify: NOTHING_MORE.fanotify,
    timerfd: undefined,
    pidfd: undefined,
    locks: NOTHING_MORE.locks,
    ttyIndex: undefined,
    iff: undefined,
    extra: isUnix ? NO_FDS_LINES : NOTHING_MORE.extra,
  };
}

const POS = "pos:\t";
const FLAGS = "\nflags:\t";
const MNT_ID = "\nmnt_id:\t";
const INO = "\nino:\t";
/** Of a unix socket in which no files are in flight. */
const NO_FDS = "\nscm_fds: 0\n";
const NO_FDS_LINES = ["scm_fds: 0"] as const;

/** What the kernel tells of no plain file. */
export const NOTHING_MORE = {
  eventfd: undefined,
  epoll: [],
  sigmask: undefined,
  inotify: [],
  fanotify: [],
  timerfd: undefined,
  pidfd: undefined,
  locks: [],
  ttyIndex: undefined,
  iff: undefined,
  extra: [],
} as const;

function parseLines(text: string): FdInfo {
  const plain = new Map<string, string>();
  const epoll: EpollTarget[] = [];
  const inotify: InotifyMark[] = [];
  const fanotify: FanotifyLine[] = [];
  const locks: LockLine[] = [];
  const extra: string[] = [];
  for (const line of text.split("\n")) {
    if (line === "") continue;
    const colon = line.indexOf(":");
    const name = line.slice(0, colon);
    if (PLAIN_NAMES.has(name)) plain.set(name, line.slice(colon + 1).trim());
    else if (name === "tfd") epoll.push(parseEpollTarget(line));
    else if (name === "lock") locks.push(parseLock(line.slice(colon + 1)));
    else if (line.startsWith("inotify wd:")) inotify.push(parseInotify(line));
    else if (!line.startsWith("fanotify ") || !pushFanotify(line, fanotify)) extra.push(line);
  }
  const number = (key: string, radix: number): number | undefined =>
    mapped(plain, key, (value) => Number.parseInt(value, radix));
  return {
    pos: BigInt(plain.get("pos") ?? "0"),
    flags: number("flags", 8) ?? 0,
    mntId: number("mnt_id", 10) ?? 0,
    ino: mapped(plain, "ino", BigInt),
    eventfd: mapped(plain, "eventfd-count", (count) => ({
      count: BigInt(`0x${count}`),
      id: number("eventfd-id", 10),
      semaphore: mapped(plain, "eventfd-semaphore", (value) => value !== "0"),
    })),
    epoll,
    sigmask: mapped(plain, "sigmask", (value) => BigInt(`0x${value}`)),
    inotify,
    fanotify,
    timerfd: timerfd(plain),
    pidfd: mapped(plain, "Pid", (pid) => ({
      pid: Number(pid),
      nsPid: (plain.get("NSpid") ?? "")
        .split("\t")
        .filter((part) => part !== "")
        .map(Number),
    })),
    locks,
    ttyIndex: number("tty-index", 10),
    iff: plain.get("iff"),
    extra,
  };
}

/** Lines `name: value` that come at most once. */
const PLAIN_NAMES: ReadonlySet<string> = new Set([
  "pos",
  "flags",
  "mnt_id",
  "ino",
  "eventfd-count",
  "eventfd-id",
  "eventfd-semaphore",
  "sigmask",
  "clockid",
  "ticks",
  "settime flags",
  "it_value",
  "it_interval",
  "Pid",
  "NSpid",
  "tty-index",
  "iff",
]);

function mapped<T>(
  plain: ReadonlyMap<string, string>,
  key: string,
  convert: (value: string) => T,
): T | undefined {
  const value = plain.get(key);
  return value === undefined ? undefined : convert(value);
}

function pushFanotify(line: string, into: FanotifyLine[]): boolean {
  const parsed = parseFanotify(line);
  if (parsed === undefined) return false;
  into.push(parsed);
  return true;
}

/** `tfd: 5 events: 19 data: 5 pos:0 ino:d12a sdev:f`, padded: tfd and pos decimal, the rest hexadecimal. */
function parseEpollTarget(line: string): EpollTarget {
  const values = new Map<string, string>();
  for (const [, name = "", value = ""] of line.matchAll(/(\w+):\s*(-?\w+)/g))
    values.set(name, value);
  return {
    tfd: Number(values.get("tfd")),
    events: Number.parseInt(values.get("events") ?? "0", 16),
    data: BigInt(`0x${values.get("data") ?? "0"}`),
    pos: BigInt(values.get("pos") ?? "0"),
    ino: mapped(values, "ino", (value) => BigInt(`0x${value}`)),
    sdev: mapped(values, "sdev", (value) => Number.parseInt(value, 16)),
  };
}

function timerfd(plain: ReadonlyMap<string, string>): TimerfdInfo | undefined {
  const clockid = plain.get("clockid");
  if (clockid === undefined) return undefined;
  return {
    clockid: Number(clockid),
    ticks: BigInt(plain.get("ticks") ?? "0"),
    settimeFlags: Number.parseInt(plain.get("settime flags") ?? "0", 8),
    value: timespec(plain.get("it_value")),
    interval: timespec(plain.get("it_interval")),
  };
}

/** `(seconds, nanoseconds)`. */
function timespec(value: string | undefined): Timespec {
  const match = /^\((\d+), (\d+)\)$/.exec(value ?? "");
  return { sec: Number(match?.[1] ?? 0), nsec: Number(match?.[2] ?? 0) };
}
