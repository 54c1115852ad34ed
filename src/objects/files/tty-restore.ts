// Making terminals again. A pair is one open of /dev/ptmx; the kernel gives the lowest free index, so indexes below the
// wanted one are taken first and given back. Slaves come from their master (TIOCGPTPEER), which needs no path. A slave
// without a master in the images becomes the terminal that the restore itself runs in (--shell-job).

import { assert, RepriseError } from "../../errors.ts";
import {
  TtyType,
  type FileEntry,
  type TtyFileEntry,
  type TtyInfoEntry,
} from "../../images/schema/messages.generated.ts";
import {
  AT_EMPTY_PATH,
  AT_FDCWD,
  F_DUPFD,
  F_SETFL,
  O_ACCMODE,
  O_CLOEXEC,
  O_NOCTTY,
  O_NONBLOCK,
  O_RDWR,
} from "../../sys/abi/fcntl.ts";
import {
  TCGETS,
  TCOOFF,
  TCSETS,
  TCXONC,
  TERMIOS_SIZE,
  TIOCEXCL,
  TIOCGPTN,
  TIOCGPTPEER,
  TIOCPKT,
  TIOCSLCKTRMIOS,
  TIOCSPTLCK,
  TIOCSWINSZ,
} from "../../sys/abi/tty.ts";
import { POLLIN } from "../../sys/abi/poll.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import type { Argument, Program, Ref } from "../../tracee/program.ts";
import {
  controllingTerminals,
  isMaster,
  masterFiles,
  setForeground,
} from "./controlling-terminal.ts";
import type { FilesRestore } from "./file-kind.ts";
import { restoreOwner } from "./owner.ts";
import { pathArgument } from "./path.ts";
import {
  ONE_PIECE,
  quietTermios,
  readNumber,
  stopCharacter,
  stopsByCharacter,
  termiosBytes,
  winsizeBytes,
} from "./tty-state.ts";

/** Adds the calls that make a terminal's open file. */
export function openTerminal(program: Program, entry: FileEntry, restore: FilesRestore): Argument {
  const terminal = terminalOf(entry, restore);
  const fd = openEnd(program, terminal, restore);
  restoreOwner(program, terminal.file.fown, fd);
  return fd;
}

/** Adds the calls that make a terminal's open file from the caller's one, which gets the saved settings. */
export function openInheritedTerminal(
  program: Program,
  entry: FileEntry,
  fd: number,
  restore: FilesRestore,
): Argument {
  const { file, info } = terminalOf(entry, restore);
  const label = { label: `take over terminal file ${file.id}` };
  const own = program.call("fcntl", [fd, F_DUPFD, 0], label);
  if (info.termios !== undefined)
    program.call("ioctl", [own, TCSETS, program.data(termiosBytes(info.termios))], label);
  if (info.winsize !== undefined)
    program.call("ioctl", [own, TIOCSWINSZ, program.data(winsizeBytes(info.winsize))], label);
  restoreOwner(program, file.fown, own);
  return own;
}

/**
 * Adds the call that makes the saved process group the foreground of a terminal from outside, when the groups are there. Of
 * a terminal of the tree the leader of its session does it (controlling-terminal.ts).
 */
export function settleTerminal(
  program: Program,
  entry: FileEntry,
  fd: number,
  restore: FilesRestore,
): void {
  const { info } = terminalOf(entry, restore);
  if (isMaster(info) || info.termios === undefined) return;
  const orphans = restore.options.orphanMaster !== undefined;
  if (masterOf(info, restore) !== undefined) return;
  if (controllingTerminals(restore.set, { orphans }).has(info.sid)) return;
  const group = jobGroup(info, restore);
  if (group !== 0) setForeground(program, fd, group);
}

interface Terminal {
  readonly file: TtyFileEntry;
  readonly info: TtyInfoEntry;
}

/** Enough to let the kernel carry several pieces of data from one end of a terminal to the other. */
const MOVE_NANOSECONDS = 5_000_000n;
const NO_VALUE = 0;

function terminalOf({ id, tty }: FileEntry, { set }: FilesRestore): Terminal {
  const info = tty === undefined ? undefined : set.ttyInfos.get(tty.tty_info_id);
  assert(tty !== undefined && info !== undefined, `file ${id} is no terminal`);
  return { file: tty, info };
}

/** File entry of the other end's master; that of /dev/tty is the one of its session. */
function masterOf(info: TtyInfoEntry, { set }: FilesRestore): FileEntry | undefined {
  const real =
    info.type === TtyType.CTTY
      ? [...set.ttyInfos.values()].find(
          ({ pty, sid }) => pty !== undefined && sid !== 0 && sid === info.sid,
        )
      : info;
  return real?.pty === undefined ? undefined : masterFiles(set).get(real.pty.index);
}

function openEnd(program: Program, { file, info }: Terminal, restore: FilesRestore): Argument {
  if (isMaster(info)) return openMaster(program, { file, info }, restore);
  if (info.type === TtyType.CONSOLE || info.type === TtyType.VT || info.type === TtyType.SERIAL)
    return openHardware(program, { file, info }, restore);
  const master = masterOf(info, restore);
  if (master !== undefined) return openSlave(program, restore.open(master.id), file);
  if (info.termios === undefined && info.pty !== undefined)
    return openHungUp(program, info.pty.index, file, restore);
  if (restore.options.orphanMaster !== undefined && info.pty !== undefined)
    return openOrphan(program, { file, info }, restore.options.orphanMaster, restore);
  return openOwnTerminal(program, { file, info }, restore);
}

/** Reserved numbers of masters that were made for slaves whose own is outside, by index. */
const orphans = new WeakMap<FilesRestore, Map<number, number>>();

/** A slave whose master belongs to someone outside, who gets a new one. */
function openOrphan(
  program: Program,
  { file, info }: Terminal,
  give: (fd: number) => void,
  restore: FilesRestore,
): Argument {
  const index = info.pty?.index ?? 0;
  let made = orphans.get(restore);
  if (made === undefined) orphans.set(restore, (made = new Map<number, number>()));
  const known = made.get(index);
  if (known !== undefined) return openSlave(program, known, file);
  const label = { label: `make a master for terminal /dev/pts/${index}` };
  const opened = claimIndex(program, index, { flags: O_RDWR, restore });
  const master = restore.reserve();
  made.set(index, master);
  program.call("dup3", [opened, master, O_CLOEXEC], label);
  program.call("close", [opened]);
  if (info.termios !== undefined)
    program.call("ioctl", [master, TCSETS, program.data(termiosBytes(info.termios))], label);
  if (info.winsize !== undefined)
    program.call("ioctl", [master, TIOCSWINSZ, program.data(winsizeBytes(info.winsize))], label);
  restore.later((end) => restoreSlave(end, info, restore));
  restore.inEngine((copies) => give(copies.reserved(master)));
  return openSlave(program, master, file);
}

function openMaster(program: Program, { file, info }: Terminal, restore: FilesRestore): Argument {
  assert(info.pty !== undefined, `terminal ${info.id} has no index`);
  const master = claimIndex(program, info.pty.index, { flags: file.flags, restore });
  // By then the descriptor lies elsewhere.
  restore.later((end) => restorePair(end, { master: restore.open(file.id), file, info }, restore));
  return master;
}

function openSlave(program: Program, master: Argument, file: TtyFileEntry): Ref {
  return program.call("ioctl", [master, TIOCGPTPEER, openFlags(file.flags)], {
    label: `open the slave for terminal file ${file.id}`,
  });
}

/** A slave whose master was closed before the dump. */
function openHungUp(
  program: Program,
  index: number,
  file: TtyFileEntry,
  restore: FilesRestore,
): Argument {
  const known = hungUp.get(restore) ?? new Map<number, number>();
  hungUp.set(restore, known);
  let master = known.get(index);
  if (master === undefined) {
    const made = claimIndex(program, index, { flags: O_RDWR, restore });
    const kept = restore.reserve();
    program.call("dup3", [made, kept, O_CLOEXEC]);
    program.call("close", [made]);
    restore.later((end) => void end.call("close", [kept]));
    known.set(index, kept);
    master = kept;
  }
  return openSlave(program, master, file);
}

/** Masters of terminals that are to be hung up, by index: they live until all slaves are open. */
const hungUp = new WeakMap<FilesRestore, Map<number, number>>();

/** A console or a serial line, by the path of its device. */
function openHardware(program: Program, { file, info }: Terminal, restore: FilesRestore): Argument {
  const path = restore.set.regularFiles.get(file.regf_id ?? 0)?.name;
  assert(path !== undefined, `terminal file ${file.id} has no path`);
  const label = { label: `open terminal ${path}`, hint: "Its device must be there." };
  const flags = openFlags(file.flags);
  const fd = program.call("openat", [AT_FDCWD, pathArgument(program, path), flags, 0], label);
  if (info.termios !== undefined) {
    const termios = program.data(termiosBytes(info.termios));
    program.call("ioctl", [fd, TCSETS, termios], label);
  }
  if (info.exclusive) program.call("ioctl", [fd, TIOCEXCL, NO_VALUE], label);
  return fd;
}

/** Takes a terminal whose index is the wanted one; the kernel gives the lowest that is free. */
function claimIndex(
  program: Program,
  index: number,
  { flags, restore }: { readonly flags: number; readonly restore: FilesRestore },
): Ref {
  const taken = takenBy(restore);
  const fillers = freeBelow(index, taken, restore);
  taken.add(index);
  const label = {
    label: `make terminal /dev/pts/${index}`,
    hint: "Check that /dev/ptmx and /dev/pts are there.",
  };
  const open = (how: number): Ref =>
    program.call("openat", [AT_FDCWD, program.string("/dev/ptmx"), how, 0], label);
  const lower = Array.from({ length: fillers }, () => open(O_RDWR | O_NOCTTY));
  const master = open(openFlags(flags));
  const number = program.output(4);
  program.call("ioctl", [master, TIOCGPTN, number], label);
  // A program cannot compare; epoll_create1 succeeds for 0 alone (or O_CLOEXEC, far from any index).
  const equal = program.call(
    "epoll_create1",
    [{ kind: "load", from: number, width: 4, plus: -index }],
    {
      label: `get the number ${index} for a terminal`,
      hint: "Another program opened or closed a terminal at the same time. Try again.",
    },
  );
  for (const extra of [equal, ...lower]) program.call("close", [extra]);
  program.call("ioctl", [master, TIOCSPTLCK, numberData(program, 0)], label);
  return master;
}

const restores = new WeakMap<FilesRestore, Set<number>>();

/** Indexes that the program has taken so far. */
function takenBy(restore: FilesRestore): Set<number> {
  const taken = restores.get(restore) ?? new Set<number>();
  restores.set(restore, taken);
  return taken;
}

/**
 * How many indexes below this one are free.
 *
 * @throws RepriseError UNSUPPORTED when the index itself is taken.
 */
function freeBelow(index: number, taken: ReadonlySet<number>, restore: FilesRestore): number {
  let free = freeIndexes.get(restore);
  if (free === undefined || (free.at(-1) ?? -1) < index) {
    const highest = Math.max(index, ...[...restore.set.ttyInfos.values()].map(indexOf));
    const inThere = restore.inRootMounts?.bind(restore) ?? (<T>(action: () => T): T => action());
    freeIndexes.set(restore, (free = inThere(() => freeUpTo(highest))));
  }
  if (!free.includes(index)) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot make terminal /dev/pts/${index} again: this number is in use`,
      {
        hint: "Close the terminal that has this number, or restore where it is free.",
      },
    );
  }
  return free.filter((one) => one < index && !taken.has(one)).length;
}

function indexOf({ pty }: TtyInfoEntry): number {
  return pty?.index ?? 0;
}

/** What was free before the restore took any, looked at once for all terminals. */
const freeIndexes = new WeakMap<FilesRestore, readonly number[]>();

/** Asked by taking them: /dev/pts does not list those of terminals that are hung up but still open. */
function freeUpTo(highest: number): number[] {
  const masters: number[] = [];
  const found: number[] = [];
  try {
    while ((found.at(-1) ?? -1) < highest) {
      masters.push(
        syscall("openat", AT_FDCWD, Buffer.from("/dev/ptmx\0"), O_RDWR | O_NOCTTY | O_CLOEXEC, 0),
      );
      found.push(readNumber(masters.at(-1) ?? -1, TIOCGPTN));
    }
    return found;
  } finally {
    for (const fd of masters) trySyscall("close", fd);
  }
}

/** Data first, under settings that leave it as it is; then the settings. All are the slave's, reached through the master. */
function restorePair(
  program: Program,
  { master, file, info }: Terminal & { readonly master: Argument },
  restore: FilesRestore,
): void {
  const slaveInfo = restore.set.ttyInfos.get(info.id - 1);
  const { termios, termios_locked, winsize } = slaveInfo?.termios === undefined ? info : slaveInfo;
  const label = { label: `restore the settings of terminal /dev/pts/${info.pty?.index}` };
  const bytes = termios === undefined ? Buffer.alloc(TERMIOS_SIZE) : termiosBytes(termios);
  restoreData(program, { master, file, info, quiet: quietTermios(bytes) }, restore);
  if (termios !== undefined) program.call("ioctl", [master, TCSETS, program.data(bytes)], label);
  if (termios_locked !== undefined) lockSettings(termiosBytes(termios_locked), file.id, restore);
  if (winsize !== undefined)
    program.call("ioctl", [master, TIOCSWINSZ, program.data(winsizeBytes(winsize))], label);
  if ((slaveInfo?.stopped ?? 0) !== 0) stopOutput(program, { master, info, bytes }, restore);
  if (info.packet_mode) program.call("ioctl", [master, TIOCPKT, numberData(program, 1)], label);
  if (slaveInfo !== undefined) restoreSlave(program, slaveInfo, restore);
  if (info.exclusive) program.call("ioctl", [master, TIOCEXCL, NO_VALUE], label);
  if (info.locked) program.call("ioctl", [master, TIOCSPTLCK, numberData(program, 1)], label);
}

/** Before packet mode, which would tell the master of it. */
function stopOutput(
  program: Program,
  terminal: {
    readonly master: Argument;
    readonly info: TtyInfoEntry;
    /** The settings. */
    readonly bytes: Buffer;
  },
  restore: FilesRestore,
): void {
  const { master, info, bytes } = terminal;
  const label = { label: `stop the output of terminal /dev/pts/${info.pty?.index}` };
  const { stopped = 0 } = restore.set.ttyInfos.get(info.id - 1) ?? {};
  if (stopsByCharacter(bytes, stopped)) {
    program.call("write", [master, program.data(stopCharacter(bytes)), 1], label);
    return;
  }
  const slave = [...restore.set.files.values()].find(({ tty }) => tty?.tty_info_id === info.id - 1);
  if (slave !== undefined) program.call("ioctl", [restore.open(slave.id), TCXONC, TCOOFF], label);
}

/** What of the settings is locked (TIOCSLCKTRMIOS): by the engine, as a tree in a user namespace must not. Nothing is at first. */
function lockSettings(locked: Buffer, id: number, restore: FilesRestore): void {
  if (locked.every((byte) => byte === 0)) return;
  restore.inEngine((copies) => void syscall("ioctl", copies.file(id), TIOCSLCKTRMIOS, locked));
}

/** Owner, permissions and exclusive mode of the slave, through one of its open files. */
function restoreSlave(program: Program, info: TtyInfoEntry, restore: FilesRestore): void {
  const entry = [...restore.set.files.values()].find(({ tty }) => tty?.tty_info_id === info.id);
  if (entry?.tty === undefined) return;
  const slave = restore.open(entry.id);
  const name = `/dev/pts/${info.pty?.index}`;
  if (info.uid !== undefined && info.gid !== undefined) {
    const args = [slave, program.string(""), info.uid, info.gid, AT_EMPTY_PATH];
    program.call("fchownat", args, { label: `give ${name} to user ${info.uid}` });
  }
  const mode = restore.set.regularFiles.get(entry.tty.regf_id ?? 0)?.mode;
  if (mode !== undefined) {
    program.call("fchmodat", [AT_FDCWD, program.string(name), mode & 0o7777], { mayFail: true });
  }
  if (info.exclusive)
    program.call("ioctl", [slave, TIOCEXCL, NO_VALUE], { label: `make ${name} exclusive` });
}

/** What was read from one end is written into the other; both without waiting, so that no size can block the restore. */
function restoreData(
  program: Program,
  { master, file, info, quiet }: Terminal & { readonly master: Argument; readonly quiet: Buffer },
  restore: FilesRestore,
): void {
  const { set } = restore;
  const atMaster = set.ttyData.find(({ tty_id }) => tty_id === info.id)?.data;
  const atSlave = set.ttyData.find(({ tty_id }) => tty_id === info.id - 1)?.data;
  if (atMaster === undefined && atSlave === undefined && info.slave_gone !== true) return;
  const label = { label: `put data into terminal /dev/pts/${info.pty?.index}` };
  program.call("ioctl", [master, TCSETS, program.data(quiet)], label);
  if (atSlave !== undefined) {
    program.call("fcntl", [master, F_SETFL, file.flags | O_NONBLOCK], label);
    program.call("write", [master, program.data(atSlave), atSlave.length], label);
    program.call("fcntl", [master, F_SETFL, file.flags], label);
  }
  // Where no task has the other end, closing it would hang up.
  const isHeld = [...set.files.values()].some(({ tty }) => tty?.tty_info_id === info.id - 1);
  if (isHeld || atMaster !== undefined || info.slave_gone === true) {
    const slave = restore.reserve();
    const flags = O_RDWR | O_NOCTTY | O_NONBLOCK;
    const opened = program.call("ioctl", [master, TIOCGPTPEER, flags], label);
    program.call("dup3", [opened, slave, O_CLOEXEC], label);
    program.call("close", [opened]);
    if (atMaster !== undefined)
      program.call("write", [slave, program.data(atMaster), atMaster.length], label);
    const pollfd = Buffer.alloc(8);
    pollfd.writeInt32LE(slave, 0);
    pollfd.writeInt16LE(POLLIN, 4);
    // It waits for what is still on its way: see tty-state.ts.
    program.call("ppoll", [program.data(pollfd), 1, program.data(Buffer.alloc(16)), 0, 0], label);
    program.call("close", [slave]);
    if ((atSlave?.length ?? 0) <= ONE_PIECE) return;
  }
  const moment = Buffer.alloc(16);
  moment.writeBigInt64LE(MOVE_NANOSECONDS, 8);
  program.call("nanosleep", [program.data(moment), 0], { mayFail: true });
}

function openOwnTerminal(
  program: Program,
  { file, info }: Terminal,
  { options }: FilesRestore,
): Argument {
  if (!options.shellJob) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot restore terminal file ${file.id}: its other end is not in the images`,
      {
        hint: "Use --shell-job: the program then continues in the terminal that the restore runs in.",
      },
    );
  }
  const path = ownTerminal();
  if (path === undefined) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot restore terminal file ${file.id}: the restore has no terminal itself`,
      {
        hint: "Run the restore with --shell-job in a terminal, with its input, output or errors not redirected.",
      },
    );
  }
  const fd = program.call("openat", [AT_FDCWD, program.string(path), openFlags(file.flags), 0], {
    label: `open the restore's own terminal for file ${file.id}`,
  });
  // The size is the window's, which knows better.
  if (info.termios !== undefined) {
    program.call("ioctl", [fd, TCSETS, program.data(termiosBytes(info.termios))], {
      label: "restore the settings of the terminal",
    });
  }
  return fd;
}

/** A path to the terminal of the engine: of its standard input, output or errors, or its controlling one. */
function ownTerminal(): string | undefined {
  const standard = [0, 1, 2].find(
    (fd) => trySyscall("ioctl", fd, TCGETS, Buffer.alloc(TERMIOS_SIZE)) === 0,
  );
  if (standard !== undefined) return `/proc/${process.pid}/fd/${standard}`;
  const fd = trySyscall(
    "openat",
    AT_FDCWD,
    Buffer.from("/dev/tty\0"),
    O_RDWR | O_NOCTTY | O_CLOEXEC,
    0,
  );
  if (fd < 0) return undefined;
  trySyscall("close", fd);
  return "/dev/tty";
}

/** Of a terminal from outside: the saved foreground group if it is in the tree, else the root's own group. */
function jobGroup(info: TtyInfoEntry, { set }: FilesRestore): number {
  const groups = new Set([...set.tasks.values()].map(({ pstree }) => pstree.pgid));
  if (info.pgrp !== 0 && groups.has(info.pgrp)) return info.pgrp;
  return set.tasks.get(set.rootPid)?.pstree.pgid === set.rootPid ? set.rootPid : 0;
}

/** Access mode and O_NONBLOCK; never a controlling terminal by accident. */
function openFlags(flags: number): number {
  return (flags & (O_ACCMODE | O_NONBLOCK)) | O_NOCTTY;
}

function numberData(program: Program, value: number): Argument {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(value);
  return program.data(bytes);
}
