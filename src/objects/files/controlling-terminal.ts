// Controlling terminals: which session owns which pseudo terminal of the tree, and the calls by which a session leader takes
// it. See TIOCSCTTY in ioctl_tty(2), and drivers/tty/tty_jobctrl.c.

import type { LoadedSet } from "../../images/check-set.ts";
import {
  FdTypes,
  TtyType,
  type FileEntry,
  type TtyInfoEntry,
} from "../../images/schema/messages.generated.ts";
import { O_NOCTTY, O_RDWR } from "../../sys/abi/fcntl.ts";
import { TIOCGPTPEER, TIOCSCTTY, TIOCSPGRP } from "../../sys/abi/tty.ts";
import type { Argument, Program } from "../../tracee/program.ts";

/** A pseudo terminal that a session of the tree owns. */
export interface ControllingTerminal {
  /** Pid of the session's leader, who is in the tree. */
  readonly sid: number;
  /** File entry through which the leader takes it: one of a slave, or of the master when no slave is open. */
  readonly fileId: number;
  readonly end: "master" | "slave";
  /** Foreground process group; 0 for none. */
  readonly pgrp: number;
}

/** What this needs of an image set. */
type Terminals = Pick<LoadedSet, "files" | "ttyInfos" | "tasks">;

/**
 * The controlling terminals of the tree's sessions, by session: those whose master is in the tree, and with `orphans` those that get a
 * new one.
 */
export function controllingTerminals(
  set: Terminals,
  options: { readonly orphans?: boolean } = {},
): Map<number, ControllingTerminal> {
  const found = new Map<number, ControllingTerminal>();
  const masters = masterFiles(set);
  for (const { id, type, tty } of set.files.values()) {
    if (type !== FdTypes.TTY || tty === undefined) continue;
    const info = set.ttyInfos.get(tty.tty_info_id);
    if (info === undefined || info.sid === 0 || info.termios === undefined) continue;
    if (info.type === TtyType.EXT_TTY) {
      if (set.tasks.get(info.sid)?.pstree.sid === info.sid)
        found.set(info.sid, { sid: info.sid, fileId: id, end: "slave", pgrp: info.pgrp });
      continue;
    }
    if (info.pty === undefined) continue;
    if (set.tasks.get(info.sid)?.pstree.sid !== info.sid) continue;
    if (!masters.has(info.pty.index) && options.orphans !== true) continue;
    const end = isMaster(info) ? "master" : "slave";
    const known = found.get(info.sid);
    if (known === undefined || (known.end === "master" && end === "slave")) {
      found.set(info.sid, { sid: info.sid, fileId: id, end, pgrp: info.pgrp });
    }
  }
  return found;
}

/**
 * Adds the calls by which the task, a session leader without a terminal, takes the terminal behind `fd`.
 *
 * @param terminal.end whether `fd` is a slave (the default) or the master.
 */
export function makeControllingTerminal(
  program: Program,
  fd: Argument,
  terminal: { readonly end?: "master" | "slave" } = {},
): void {
  const label = { label: "make a terminal the controlling one of its session" };
  if (terminal.end !== "master") {
    program.call("ioctl", [fd, TIOCSCTTY, 1], label);
    return;
  }
  const slave = program.call("ioctl", [fd, TIOCGPTPEER, O_RDWR | O_NOCTTY], label);
  program.call("ioctl", [slave, TIOCSCTTY, 1], label);
  program.call("close", [slave]);
}

/** Adds the call that sets the foreground group of the task's terminal; it may fail, for a group that is gone. */
export function setForeground(program: Program, fd: Argument, pgrp: number): void {
  const group = Buffer.alloc(4);
  group.writeInt32LE(pgrp);
  program.call("ioctl", [fd, TIOCSPGRP, program.data(group)], {
    label: `make process group ${pgrp} the foreground of its terminal`,
    mayFail: true,
  });
}

/** What --external and --inherit-fd call a terminal: the numbers of its device and of its file system. */
export function terminalKey({ rdev, dev }: Pick<TtyInfoEntry, "rdev" | "dev">): string {
  return `tty[${rdev.toString(16)}:${(dev ?? 0).toString(16)}]`;
}

/** Whether an entry of tty-info is of a pseudo terminal's master: its id says so. */
export function isMaster(info: TtyInfoEntry): boolean {
  return info.pty !== undefined && info.id % 2 === 1;
}

/** File entries of the masters in a set, by index. */
export function masterFiles({
  files,
  ttyInfos,
}: Pick<LoadedSet, "files" | "ttyInfos">): Map<number, FileEntry> {
  const masters = new Map<number, FileEntry>();
  for (const file of files.values()) {
    const info = file.tty === undefined ? undefined : ttyInfos.get(file.tty.tty_info_id);
    if (info?.pty !== undefined && isMaster(info)) masters.set(info.pty.index, file);
  }
  return masters;
}
