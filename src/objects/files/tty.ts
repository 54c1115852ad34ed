// Terminals: pseudo terminals whose two ends are in the tree, and the slave whose master (a terminal window, sshd) is
// outside, which needs --shell-job. Consoles and serial lines are opened again and get their
// settings. See pty(7), tty_ioctl(4), format.md 11. A terminal has one entry in tty-info for each
// end, named by its index; each open file of it has one in files.img, with a regular file entry for its path.

import { RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import {
  FdTypes,
  TtyType,
  type FileEntry,
  type TtyDataEntry,
  type TtyInfoEntry,
} from "../../images/schema/messages.generated.ts";
import { O_CLOEXEC, O_NOCTTY, O_NONBLOCK, O_RDWR, S_IFCHR, S_IFMT } from "../../sys/abi/fcntl.ts";
import {
  LOW_DENSE_SERIAL_MAJOR,
  MAX_NR_CONSOLES,
  TIOCGDEV,
  TIOCGEXCL,
  TIOCGPGRP,
  TIOCGPKT,
  TIOCGPTLCK,
  TIOCGPTN,
  TIOCGPTPEER,
  TIOCGSID,
  TIOCPKT,
  TIOCSPTLCK,
  TTY_MAJOR,
  TTYAUX_MAJOR,
  UNIX98_PTY_MAJOR_COUNT,
  UNIX98_PTY_MASTER_MAJOR,
  UNIX98_PTY_SLAVE_MAJOR,
  USB_SERIAL_MAJOR,
} from "../../sys/abi/tty.ts";
import { errnoName } from "../../sys/errno.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import type { FileKind, FilesDump, OpenFile } from "./file-kind.ts";
import { readOwner } from "./owner.ts";
import { openInheritedTerminal, openTerminal, settleTerminal } from "./tty-restore.ts";
import { terminalKey } from "./controlling-terminal.ts";
import { copyDataInFlight, readNumber, readSettings, type Stop } from "./tty-state.ts";
import { idsInside } from "../namespaces/user.ts";
import { POLLHUP, POLLPRI } from "../../sys/abi/poll.ts";
import { pollNow } from "../../sys/poll.ts";

export const ttyKind: FileKind = {
  name: "terminal",
  type: FdTypes.TTY,
  recognise: ({ stat }) =>
    (stat.mode & S_IFMT) === S_IFCHR && deviceKind(stat.rdevMajor, stat.rdevMinor) !== undefined,
  write: writeTerminal,
  open: openTerminal,
  settle: settleTerminal,
  inheritKeys: ({ tty }, { ttyInfos }) => {
    const info = ttyInfos.get(tty?.tty_info_id ?? 0);
    return info === undefined ? [] : [terminalKey(info)];
  },
  openInherited: openInheritedTerminal,
};

/** What a terminal's device number says. */
export type TtyDevice =
  | "master"
  | "slave"
  | "current"
  | "console"
  | "virtual console"
  | "serial line";

/** The kind of terminal of a device; undefined for what is no terminal. */
export function deviceKind(major: number, minor: number): TtyDevice | undefined {
  if (major === TTYAUX_MAJOR) return (["current", "console", "master"] as const)[minor];
  if (major === TTY_MAJOR) return minor <= MAX_NR_CONSOLES ? "virtual console" : "serial line";
  if (major === USB_SERIAL_MAJOR || major === LOW_DENSE_SERIAL_MAJOR) return "serial line";
  if (within(major, UNIX98_PTY_MASTER_MAJOR)) return "master";
  return within(major, UNIX98_PTY_SLAVE_MAJOR) ? "slave" : undefined;
}

/** Index in the images of /dev/tty, which is a terminal of its own there. */
const CURRENT_TTY_INDEX = 1006;
/** Indexes of terminals that --external names begin above this one. */
const EXTERNAL_INDEX = 1012;
/** What is no pseudo terminal. */
const TYPES: Partial<Record<Seen["device"], number>> = {
  current: TtyType.CTTY,
  external: TtyType.EXT_TTY,
  console: TtyType.CONSOLE,
  "virtual console": TtyType.VT,
  "serial line": TtyType.SERIAL,
};
/** Indexes up to here are pseudo terminals; the next ones have other meanings. */
const MAX_PTY_INDEX = 1000;
/** Minor bits of a device number as stat(2) and TIOCGDEV give it: the low 8, the rest above 12 bits of major. */
const LOW_MINOR = 0xff;

/** One end of a terminal that was seen in the tree. */
interface Seen {
  readonly file: OpenFile;
  /** The engine's copy. */
  readonly fd: number;
  readonly index: number;
  readonly device: TtyDevice | "external";
  readonly info: TtyInfoEntry;
}

const dumps = new WeakMap<FilesDump, Map<number, Seen>>();

function writeTerminal(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  const device = isExternal(file, dump)
    ? "external"
    : deviceKind(file.stat.rdevMajor, file.stat.rdevMinor);
  if (device === undefined) throw refused(file, "it is no terminal", "Close it.");
  const fd = dump.borrow(file);
  const hardware = hardwareIndex(device);
  const index = hardware ?? indexOf(file, fd, device, seenIn(dump));
  const infoId =
    device === "current" ? CURRENT_TTY_INDEX * 2 : index * 2 + (device === "master" ? 1 : 0);
  const seen = seenIn(dump);
  const known = seen.get(infoId);
  if (hardware !== undefined && known !== undefined) refuseSecond(file, known);
  const info = known?.info ?? infoEntry({ file, fd, index, device }, infoId, dump);
  // Only a task of the session can tell the session of a slave.
  const session = info.sid === 0 ? sessionOf(file, fd, dump) : info;
  seen.set(infoId, {
    file: known?.file ?? file,
    fd: known?.fd ?? fd,
    index,
    device,
    info: { ...info, sid: session.sid, pgrp: session.pgrp },
  });
  const flags = file.info.flags & ~O_CLOEXEC;
  const fown = readOwner(file, dump);
  const name = file.target.replace(/ \(deleted\)$/, "");
  const regf_id = dump.addEntry((regular) => ({
    type: FdTypes.REG,
    id: regular,
    reg: { id: regular, flags, pos: 0n, fown, name, mode: file.stat.mode, build_id: [] },
  }));
  return { type: FdTypes.TTY, id, tty: { id, tty_info_id: infoId, flags, fown, regf_id } };
}

function within(major: number, first: number): boolean {
  return major >= first && major < first + UNIX98_PTY_MAJOR_COUNT;
}

/** The terminals that a dump has seen, by their id in tty-info; the first one defers the end of the work. */
function seenIn(dump: FilesDump): Map<number, Seen> {
  let seen = dumps.get(dump);
  if (seen === undefined) {
    const made = new Map<number, Seen>();
    dumps.set(dump, made);
    dump.later(() => finish(dump, made));
    seen = made;
  }
  return seen;
}

/** With all ends seen: are they pairs, whose sessions, and what is on its way between them. */
function finish(dump: FilesDump, seen: Map<number, Seen>): void {
  const masters = new Map<number, Seen>();
  for (const end of seen.values()) if (end.device === "master") masters.set(end.index, end);
  checkPairs([...seen.values()], masters, dump);
  const data: TtyDataEntry[] = [];
  const stops = new Map<number, Stop>();
  for (const slave of seen.values()) {
    const master = masters.get(slave.index);
    if (slave.device !== "slave" || slave.info.termios === undefined || master === undefined)
      continue;
    const { entries, stopped } = lookBetween(master, slave);
    data.push(...entries);
    if (stopped !== undefined) stops.set(slave.info.id, stopped);
  }
  const infos = [...seen.values()].flatMap((end) => {
    const { info } = end;
    const stopped = stops.get(info.id);
    if (end.device !== "master" || !lostItsSlave(end, seen))
      return stopped === undefined ? info : { ...info, stopped };
    // What it has not read needs an entry of its own.
    const slave = { ...info, id: info.id - 1, locked: false, packet_mode: false };
    data.push(...lookBehind(end, slave));
    return [slave, { ...info, slave_gone: true }];
  });
  dump.images.write("tty-info", 0, infos);
  if (data.length > 0) dump.images.write("tty-data", 0, data);
}

function checkPairs(
  seen: readonly Seen[],
  masters: ReadonlyMap<number, Seen>,
  dump: FilesDump,
): void {
  const lone = seen.filter(
    ({ device, index, info }) =>
      device !== "master" &&
      device !== "external" &&
      hardwareIndex(device) === undefined &&
      info.termios !== undefined &&
      !masters.has(index),
  );
  const [first] = lone;
  if (first === undefined) return;
  const { shellJob, orphanPtsMaster } = dump.options;
  if (!shellJob && orphanPtsMaster !== true) {
    throw refused(
      first.file,
      `it is a terminal (/dev/pts/${first.index}) whose other end is not in the tree`,
      "Use --shell-job for a program that runs in a terminal; it is restored in the terminal of the restore. Or dump the tree that holds the other end too.",
    );
  }
  const other = lone.find(({ index }) => index !== first.index);
  if (other !== undefined) {
    throw refused(
      other.file,
      `the tree uses two terminals whose other ends are outside, /dev/pts/${first.index} and /dev/pts/${other.index}`,
      "--shell-job can bring back one. Have the program close the other.",
    );
  }
}

/** Its slave was open once, and is closed everywhere: what it wrote can still be read, and after that comes an error. */
function lostItsSlave({ fd, info }: Seen, seen: ReadonlyMap<number, Seen>): boolean {
  return !seen.has(info.id - 1) && (pollNow(fd) & POLLHUP) !== 0;
}

/** Through a slave of the engine's own; when that is closed, all is as before. */
function lookBehind(master: Seen, behind: TtyInfoEntry): TtyDataEntry[] {
  const { fd, info } = master;
  const flags = O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC;
  if (info.locked) setNumber(fd, TIOCSPTLCK, 0);
  const slave = trySyscall("ioctl", fd, TIOCGPTPEER, flags);
  if (info.locked) setNumber(fd, TIOCSPTLCK, 1);
  if (slave < 0) {
    const why = `its slave cannot be opened: ioctl: ${errnoName(-slave)}`;
    throw refused(master.file, why, "What the slave wrote cannot be seen otherwise. Try again.");
  }
  try {
    return lookBetween(master, { ...master, fd: slave, device: "slave", info: behind }).entries;
  } finally {
    trySyscall("close", slave);
  }
}

interface Between {
  readonly entries: TtyDataEntry[];
  readonly stopped: Stop | undefined;
}

function lookBetween(master: Seen, slave: Seen): Between {
  // In packet mode, what is read from a master begins with a byte of status.
  const packet = master.info.packet_mode;
  if (packet) {
    if (hasStatus(master.fd)) tellStatus(master.file);
    setPacketMode(master.fd, 0);
  }
  const { atMaster, atSlave, stopped } = copyDataInFlight(master.fd, slave.fd);
  if (packet) setPacketMode(master.fd, 1);
  const entries = [
    { tty_id: master.info.id, data: atMaster },
    { tty_id: slave.info.id, data: atSlave },
  ].filter((entry) => entry.data.length > 0);
  return { entries, stopped };
}

/** A byte of status waits to be read: only that shows as POLLPRI (n_tty_poll). What it is, only reading it tells. */
function hasStatus(master: number): boolean {
  return pollNow(master, POLLPRI) !== 0;
}

function tellStatus({ task, fd, target }: OpenFile): void {
  log.loss(
    `fd ${fd} of pid ${task.pid} (${target}): a change of the terminal that it has not read yet (TIOCPKT) is lost`,
  );
}

function setPacketMode(master: number, on: 0 | 1): void {
  setNumber(master, TIOCPKT, on);
}

function setNumber(fd: number, call: number, number: number): void {
  const value = Buffer.alloc(4);
  value.writeInt32LE(number);
  syscall("ioctl", fd, call, value);
}

function isExternal({ stat }: OpenFile, { options }: FilesDump): boolean {
  const rdev = encodeDevice(stat.rdevMajor, stat.rdevMinor);
  const dev = encodeDevice(stat.devMajor, stat.devMinor);
  return options.external?.includes(terminalKey({ rdev, dev })) === true;
}

function indexOf(
  file: OpenFile,
  fd: number,
  device: Seen["device"],
  seen: ReadonlyMap<number, Seen>,
): number {
  const { rdevMinor } = file.stat;
  if (device === "external") {
    const others = [...seen.values()].filter((one) => one.device === "external");
    const same = others.find(
      ({ file: { stat } }) =>
        stat.rdevMinor === rdevMinor &&
        stat.rdevMajor === file.stat.rdevMajor &&
        stat.devMinor === file.stat.devMinor,
    );
    return same?.index ?? EXTERNAL_INDEX + 1 + others.length;
  }
  const index =
    device === "slave"
      ? rdevMinor
      : device === "master"
        ? readNumber(fd, TIOCGPTN)
        : minorOf(readNumber(fd, TIOCGDEV));
  if (index <= MAX_PTY_INDEX) return index;
  throw refused(
    file,
    `its number ${index} is too large for an image (at most ${MAX_PTY_INDEX})`,
    "Close other terminals, and start the program again.",
  );
}

function minorOf(device: number): number {
  return (device & LOW_MINOR) | ((device >>> 12) & ~LOW_MINOR);
}

function encodeDevice(major: number, minor: number): number {
  return ((major << 8) | (minor & LOW_MINOR) | ((minor & ~LOW_MINOR) << 12)) >>> 0;
}

function infoEntry(end: Omit<Seen, "info">, id: number, dump: FilesDump): TtyInfoEntry {
  const { file, fd, index, device } = end;
  const { stat } = file;
  const settings = readSettings(fd);
  if (settings === undefined)
    log.debug(`fd ${file.fd} of pid ${file.task.pid}: terminal ${index} is hung up`);
  return {
    id,
    type: TYPES[device] ?? TtyType.PTY,
    locked: device === "master" && readNumber(fd, TIOCGPTLCK) !== 0,
    exclusive: readNumber(fd, TIOCGEXCL) !== 0,
    packet_mode: device === "master" && readNumber(fd, TIOCGPKT) !== 0,
    ...sessionOf(file, fd, dump),
    rdev: encodeDevice(stat.rdevMajor, stat.rdevMinor),
    ...settings,
    ...(TYPES[device] === undefined ? { pty: { index } } : {}),
    dev: encodeDevice(stat.devMajor, stat.devMinor),
    ...idsInside(dump.namespaces, stat),
  };
}

/** Session and foreground group. The kernel tells them of a master; of a slave only in /proc/PID/stat of the session's tasks. */
function sessionOf(
  file: OpenFile,
  fd: number,
  dump: FilesDump,
): { readonly sid: number; readonly pgrp: number } {
  const { stat, task } = file;
  const device = deviceKind(stat.rdevMajor, stat.rdevMinor);
  if (device === "master") {
    return { sid: inner(readNumber(fd, TIOCGSID)), pgrp: inner(readNumber(fd, TIOCGPGRP)) };
  }
  const own = encodeDevice(stat.rdevMajor, stat.rdevMinor) === task.stat.ttyNr >>> 0;
  if (!own && device !== "current") return { sid: 0, pgrp: 0 };
  return { sid: inner(task.stat.session), pgrp: inner(task.stat.tpgid) };

  /** A session outside of the tree keeps its number where that means the same to the tree. */
  function inner(pid: number): number {
    if (pid <= 0) return 0;
    return dump.innerPid(pid) ?? (task.pid === task.innerPid ? pid : 0);
  }
}

/** All consoles have one index in the images, all virtual ones another, all serial lines a third. */
function hardwareIndex(device: Seen["device"]): number | undefined {
  const indexes = { console: 1002, "virtual console": 1004, "serial line": 1010 };
  return Object.entries(indexes).find(([name]) => name === device)?.[1];
}

function refuseSecond(file: OpenFile, { file: { stat }, device }: Seen): void {
  if (stat.rdevMajor === file.stat.rdevMajor && stat.rdevMinor === file.stat.rdevMinor) return;
  throw refused(
    file,
    `it is a second ${device}, of which an image can hold one`,
    "Have the program close one of them for the time of the dump.",
  );
}

function refused({ task, fd, target }: OpenFile, why: string, hint: string): RepriseError {
  return new RepriseError(
    "UNSUPPORTED",
    `cannot dump fd ${fd} of pid ${task.pid} (${target}): ${why}`,
    {
      pid: task.pid,
      fd,
      hint,
    },
  );
}
