// autofs, the file system of automounters: who touches a trigger waits while the kernel sends a packet through a pipe to the
// automounter, a process group that mounts something there. See Documentation/filesystems/autofs.rst; autofs-DEV.img.
//
// At restore the mount is made with no automounter ("catatonic": nothing is triggered), by a process group that may make directories
// in it; when the automounter has its descriptors it becomes the owner (AUTOFS_DEV_IOCTL_SETPIPEFD).

import { closeSync, openSync, readdirSync, readlinkSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import type { LoadedSet } from "../../images/check-set.ts";
import { Fstype, type AutofsEntry, type MntEntry } from "../../images/schema/messages.generated.ts";
import { readFdInfo } from "../../proc/fdinfo.ts";
import { undefinedIfGone } from "../../proc/procfs.ts";
import { readStatusIfAlive } from "../../proc/status.ts";
import * as abi from "../../sys/abi/autofs.ts";
import {
  AT_FDCWD,
  F_DUPFD,
  FIONREAD,
  O_ACCMODE,
  O_CLOEXEC,
  O_DIRECTORY,
  O_NONBLOCK,
  O_RDONLY,
  O_WRONLY,
} from "../../sys/abi/fcntl.ts";
import { ESRCH } from "../../sys/errno.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { Program, type Argument, type Ref } from "../../tracee/program.ts";
import { pathArgument } from "../files/path.ts";
import { joinPath } from "./external.ts";
import type { MountPlan, MountSource } from "./plan.ts";

/** `fd` of a mount that has no automounter any more. */
const CATATONIC = -1;

/** Pipes (pipeId) whose writing end the kernel has, as it sends its requests through them. */
export function requestPipes(entries: readonly MntEntry[]): number[] {
  return entries
    .filter(({ fstype }) => fstype === Fstype.AUTOFS)
    .map(({ options }) => numberOption(options, "pipe_ino") ?? CATATONIC)
    .filter((inode) => inode > 0);
}

/**
 * What is saved of an autofs mount.
 *
 * @throws RepriseError UNSUPPORTED when its automounter is not in the tree, or has a request to answer
 */
export function autofsEntry(entry: MntEntry, rootPid: number): AutofsEntry {
  const { options } = entry;
  const required = (name: string): number => {
    const value = numberOption(options, name);
    if (value === undefined) throw refuse(entry, `it has no option ${name} (${options})`);
    return value;
  };
  const mode = abi.AUTOFS_MODES.findIndex((name) => options.split(",").includes(name));
  if (mode < 0) throw refuse(entry, `it is neither direct nor indirect (${options})`);
  const uid = numberOption(options, "uid");
  const gid = numberOption(options, "gid");
  const common = {
    timeout: required("timeout"),
    minproto: required("minproto"),
    maxproto: required("maxproto"),
    mode,
    ...(uid === undefined ? {} : { uid }),
    ...(gid === undefined ? {} : { gid }),
  };
  const fd = required("fd");
  const pgrp = required("pgrp");
  if (fd === CATATONIC || isAbandoned(pgrp)) return { ...common, fd: CATATONIC, pgrp };
  return { ...common, ...ownerOf(entry, { fd, pgrp, pipe: required("pipe_ino"), rootPid }) };
}

/** Without its process group nobody answers; the kernel notices at the next request. 0 is one that is not visible from here. */
function isAbandoned(pgrp: number): boolean {
  return pgrp > 1 && trySyscall("kill", -pgrp, 0) === -ESRCH;
}

function ownerOf(
  entry: MntEntry,
  owner: {
    readonly fd: number;
    readonly pgrp: number;
    readonly pipe: number;
    readonly rootPid: number;
  },
): Pick<AutofsEntry, "fd" | "pgrp" | "read_fd"> {
  const { fd, pgrp, pipe, rootPid } = owner;
  const status = readStatusIfAlive(pgrp);
  // All tasks of the tree are traced by the engine, and nobody else is.
  if (status?.tracerPid !== process.pid)
    throw refuse(entry, `its automounter (process group ${pgrp}) is not in the tree`);
  const ends = pipeEnds(pgrp, pipe);
  const reader = ends.find(({ access }) => access !== O_WRONLY);
  if (reader === undefined)
    throw refuse(entry, `its automounter (pid ${pgrp}) does not read its requests (fd ${fd})`);
  if (hasContent(pgrp, reader.fd)) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot dump the mount ${entry.mountpoint} (autofs): pid ${pgrp} has not read a request yet`,
      { pid: pgrp, fd: reader.fd, hint: "Try again when something has been mounted there." },
    );
  }
  const depth = (readStatusIfAlive(rootPid)?.nsPid.length ?? 1) - 1;
  const isKept = ends.some((end) => end.fd === fd && end.access === O_WRONLY);
  return {
    fd,
    pgrp: status.nsPid[depth] ?? pgrp,
    // The automounter has closed its writing end: the other one is what a restore finds the pipe by.
    ...(isKept ? {} : { read_fd: reader.fd }),
  };
}

function pipeEnds(pid: number, inode: number): { fd: number; access: number }[] {
  const fds = readdirSync(`/proc/${pid}/fd`).map(Number);
  return fds.flatMap((fd) => {
    const target = undefinedIfGone(() => readlinkSync(`/proc/${pid}/fd/${fd}`));
    if (target !== `pipe:[${inode}]`) return [];
    return [{ fd, access: readFdInfo({ pid, fd }).flags & O_ACCMODE }];
  });
}

function hasContent(pid: number, fd: number): boolean {
  const copy = openSync(`/proc/${pid}/fd/${fd}`, O_RDONLY | O_NONBLOCK);
  try {
    const count = Buffer.alloc(4);
    syscall("ioctl", copy, FIONREAD, count);
    return count.readUInt32LE(0) > 0;
  } finally {
    closeSync(copy);
  }
}

function numberOption(options: string, name: string): number | undefined {
  const text = new RegExp(`(?:^|,)${name}=(-?\\d+)(?:,|$)`).exec(options)?.[1];
  return text === undefined ? undefined : Number(text);
}

function refuse(entry: MntEntry, why: string): RepriseError {
  return new RepriseError(
    "UNSUPPORTED",
    `cannot dump the mount ${entry.mountpoint} (autofs): ${why}`,
    {
      hint: "Declare it external (--external mnt[MOUNTPOINT]:NAME), or leave it out (--skip-mnt).",
    },
  );
}

/** An autofs file system that is to be mounted. */
interface Autofs {
  readonly source: MountSource;
  readonly saved: AutofsEntry;
  /** Directories that other mounts are on, or that are mounted themselves; each behind those above it. */
  readonly directories: readonly string[];
}

/** Numbers for descriptors of the root task while mounts are made. */
export interface AutofsPlaces {
  readonly pipe: number;
  readonly device: number;
}

/** Making autofs mounts again. */
export class AutofsRestore {
  readonly #mounts: readonly Autofs[];
  readonly #rootPid: number;
  readonly #roots = new Map<MountSource, Ref>();
  #device: Ref | undefined;

  /** @param set its root task makes the mounts */
  constructor(plan: MountPlan, set: LoadedSet) {
    this.#rootPid = set.rootPid;
    this.#mounts = plan.sources.flatMap((source) => {
      const { from, device } = source;
      if (from.kind !== "new" || from.entry.fstype !== Fstype.AUTOFS) return [];
      const saved = set.reader.readOne("autofs", device);
      return [{ source, saved, directories: directoriesIn(plan, source) }];
    });
  }

  get isNeeded(): boolean {
    return this.#mounts.length > 0;
  }

  /**
   * Adds the calls that open what mounting needs, where the engine's own root is still the root: the device, and a pipe that nobody
   * reads, whose number must be in the options.
   */
  open(program: Program, { pipe, device }: AutofsPlaces): void {
    if (!this.isNeeded) return;
    const opened = openDevice(program);
    program.call("dup3", [opened, device, O_CLOEXEC], { label: `keep ${abi.AUTOFS_DEVICE} open` });
    program.call("close", [opened]);
    const label = "make a pipe for autofs";
    const ends = program.output(8);
    program.call("pipe2", [ends, O_CLOEXEC], { label });
    const end = (index: number): Argument => ({
      kind: "load",
      from: { ...ends, offset: ends.offset + index * 4 },
      width: 4,
    });
    program.call("dup3", [end(1), pipe, O_CLOEXEC], { label });
    program.call("close", [end(0)]);
    program.call("close", [end(1)]);
  }

  /** Options for mount(2); undefined for another file system. */
  options(source: MountSource, { pipe }: AutofsPlaces): string | undefined {
    const mount = this.#mounts.find((one) => one.source === source);
    if (mount === undefined) return undefined;
    const { minproto, maxproto, mode, uid, gid } = mount.saved;
    const { entry } = source.from as { readonly entry: MntEntry };
    return [
      `fd=${pipe}`,
      `pgrp=${this.#rootPid}`,
      `minproto=${minproto}`,
      `maxproto=${maxproto}`,
      abi.AUTOFS_MODES[mode] ?? abi.AUTOFS_MODES[0],
      ...(uid === undefined ? [] : [`uid=${uid}`]),
      ...(gid === undefined ? [] : [`gid=${gid}`]),
      ...entry.options.split(",").filter((word) => word === "ignore" || word === "strictexpire"),
    ].join(",");
  }

  /**
   * What a child of the root task does: only members of the automounter's process group may make directories, and only while
   * there is an automounter. In the end there is none.
   *
   * @param options descriptors in the child: those of `open`, and roots of sources
   */
  prepare(options: AutofsPlaces & { fd(source: MountSource): number }): Program {
    const program = new Program();
    const { device } = options;
    program.call("setpgid", [0, 0], { label: "make a process group for autofs" });
    for (const { source, saved, directories } of this.#mounts) {
      const label = `prepare ${nameOf(source)}`;
      const root = openRoot(program, options.fd(source), label);
      const seconds = Buffer.alloc(8);
      seconds.writeBigUInt64LE(BigInt(saved.timeout));
      program.call("ioctl", [root, abi.AUTOFS_IOC_SETTIMEOUT, program.data(seconds)], { label });
      program.call("ioctl", [root, abi.AUTOFS_IOC_CATATONIC, 0], { label });
      if (directories.length > 0) {
        becomeOwner(program, { device, root, pipe: options.pipe, label });
        for (const directory of directories)
          program.call("mkdirat", [root, pathArgument(program, directory), 0o555], { label });
        program.call("ioctl", [root, abi.AUTOFS_IOC_CATATONIC, 0], { label });
      }
      program.call("close", [root]);
    }
    return program;
  }

  /** Adds the calls that keep what owners need: descriptors that all tasks inherit, at or above a number. */
  keep(
    program: Program,
    options: AutofsPlaces & { readonly above: number; fd(source: MountSource): number },
  ): void {
    if (!this.isNeeded) return;
    const owned = this.#mounts.filter(({ saved }) => saved.fd !== CATATONIC);
    const label = "keep autofs open";
    const keep = (fd: Argument): Ref => {
      const kept = program.call("fcntl", [fd, F_DUPFD, options.above], { label });
      program.call("close", [fd]);
      return kept;
    };
    this.#device = keep(options.device);
    program.call("close", [options.pipe]);
    for (const { source } of owned)
      this.#roots.set(source, keep(openRoot(program, options.fd(source), label)));
  }

  /** What is to be done when the automounters have their descriptors, once `keep` has run. */
  owners(valueOf: (ref: Ref) => number): AutofsOwner[] {
    return this.#mounts.flatMap(({ source, saved }) => {
      const root = this.#roots.get(source);
      if (root === undefined || this.#device === undefined) return [];
      return [{ saved, device: valueOf(this.#device), root: valueOf(root), name: nameOf(source) }];
    });
  }
}

/** An automounter that is to get its mount back. */
export interface AutofsOwner {
  readonly saved: AutofsEntry;
  /** Descriptors in all tasks. */
  readonly device: number;
  readonly root: number;
  readonly name: string;
}

/**
 * Adds the calls by which an automounter takes its mount over: it has its descriptors and is in its process group.
 *
 * @param task its descriptors in use, and a number above them for a while; `writer` finds the restore's own writing end of the pipe that is open as a descriptor
 */
export function takeOver(
  program: Program,
  { saved, device, root, name }: AutofsOwner,
  task: {
    readonly fds: ReadonlySet<number>;
    readonly spare: number;
    writer(fd: number): number | undefined;
  },
): void {
  const label = `give ${name} back to its automounter, pid ${saved.pgrp}`;
  if (saved.read_fd === undefined) {
    becomeOwner(program, { device, root, pipe: saved.fd, label });
    return;
  }
  const writer = task.writer(saved.read_fd);
  if (writer === undefined) {
    throw new RepriseError(
      "BAD_IMAGE",
      `cannot ${label}: its fd ${saved.read_fd} is not the pipe of its requests`,
    );
  }
  // The options of the mount tell the number ever after: it should stay what it was.
  const pipe = saved.fd >= task.spare || task.fds.has(saved.fd) ? task.spare : saved.fd;
  program.call("dup3", [writer, pipe, O_CLOEXEC], { label });
  becomeOwner(program, { device, root, pipe, label });
  program.call("close", [pipe]);
}

function becomeOwner(
  program: Program,
  what: {
    readonly device: Argument;
    readonly root: Argument;
    readonly pipe: number;
    readonly label: string;
  },
): void {
  const { device, root, pipe, label } = what;
  const argument = Buffer.alloc(abi.AUTOFS_DEV_IOCTL_SIZE);
  argument.writeUInt32LE(abi.AUTOFS_DEV_IOCTL_VERSION_MAJOR, 0);
  argument.writeUInt32LE(abi.AUTOFS_DEV_IOCTL_SIZE, 8);
  argument.writeInt32LE(pipe, abi.AUTOFS_DEV_IOCTL_ARGUMENT);
  // Where the root is a result it is put at a fixed number for the call: structures hold no results.
  const fixed = typeof root === "number" ? root : ROOT_PLACE;
  if (fixed !== root) program.call("dup3", [root, fixed, O_CLOEXEC], { label });
  argument.writeInt32LE(fixed, abi.AUTOFS_DEV_IOCTL_FD);
  program.call("ioctl", [device, abi.AUTOFS_DEV_IOCTL_SETPIPEFD, program.data(argument)], {
    label,
  });
}

/** In the child of the root task, which needs no input. */
const ROOT_PLACE = 0;

function openDevice(program: Program): Ref {
  const path = program.string(abi.AUTOFS_DEVICE);
  return program.call("openat", [AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0], {
    label: `open ${abi.AUTOFS_DEVICE}`,
    hint: "The kernel's autofs must be there (modprobe autofs4), and its device where the restore is started.",
  });
}

/** The root directory itself; a path to it would trigger a direct mount. */
function openRoot(program: Program, fd: number, label: string): Ref {
  const here = program.string(".");
  return program.call("openat", [fd, here, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0], { label });
}

function nameOf({ from }: MountSource): string {
  return `the autofs mount ${from.kind === "new" ? from.entry.mountpoint : ""}`;
}

function directoriesIn({ namespaces }: MountPlan, source: MountSource): string[] {
  const found = new Set<string>();
  const add = (path: string): void => {
    const parts = path.split("/").filter((part) => part !== "");
    parts.forEach((_, index) => found.add(parts.slice(0, index + 1).join("/")));
  };
  for (const node of namespaces.flatMap(({ mounts }) => mounts)) {
    if (node.source === source) add(node.below);
    if (node.parent?.source === source) add(joinPath(node.parent.below, node.at));
  }
  return [...found];
}
