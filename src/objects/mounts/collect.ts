// The mounts of a frozen tree: every mount namespace that is not the engine's, as mountpoints-ID.img will have it, and the way
// to its files from outside. Collected before the files, whose entries name their mounts.

import { closeSync, openSync, readFileSync, readlinkSync, statSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import { parseNamespaceLink } from "../../proc/ns.ts";
import { Fstype, type MntEntry, type UsernsEntry } from "../../images/schema/messages.generated.ts";
import { deviceMajor, deviceMinor } from "../../proc/links.ts";
import { parseMountinfo, readMountinfo, type Mount } from "../../proc/mountinfo.ts";
import type { CollectedNamespace, CollectedNamespaces } from "../namespaces/collect.ts";
import type { NamespacesDumpOptions } from "../namespaces/room.ts";
import { collectMaps, idInside } from "../namespaces/user.ts";
import { O_CLOEXEC, O_DIRECTORY, O_PATH, O_RDONLY } from "../../sys/abi/fcntl.ts";
import { syscall } from "../../sys/ffi.ts";
import { inNamespace } from "../namespaces/enter.ts";
import { requestPipes } from "./autofs.ts";
import { relativeTo, resolveExternal, showsMost } from "./external.ts";
import { fileSystemOf, plainName } from "./filesystem.ts";
import { readIdmaps } from "./idmap.ts";
import { faultOfLayers } from "./layers.ts";
import { externalMounts } from "./options.ts";
import { kernelDevice, mountRecord } from "./record.ts";

/** A mount namespace of the tree. */
export interface CollectedMounts {
  readonly namespace: CollectedNamespace;
  /** Prefix for paths in it, seen from the engine. */
  readonly prefix: string;
  readonly entries: readonly MntEntry[];
  readonly byId: ReadonlyMap<number, MntEntry>;
}

/** The mount namespaces of a tree. */
export interface MountNamespaces {
  readonly all: readonly CollectedMounts[];
  /** Of a task; undefined when it lives in the engine's. */
  ofTask(pid: number): CollectedMounts | undefined;
  /** Ids of outside as the tree's user namespace has them; unmapped ones are the overflow id. */
  readonly innerId: (kind: "uid" | "gid", outer: number) => number;
  /** Whether message queues are the tree's own. */
  readonly hasOwnQueues: boolean;
  /** Files (fileKey) that are no file's content but are saved after all: open message queues, sockets that the tree is bound to. */
  readonly savedFiles: Set<string>;
  /** Pipes (pipeId) whose writing end is the kernel's. */
  readonly kernelPipes: ReadonlySet<number>;
  /** Leaves a descriptor for `close`. */
  closeLater(fd: number): void;
  /** At the end of the dump, when the tasks need not wait for it. */
  close(): void;
  /** The maps of the tree's user namespace; undefined when it lives in the engine's. */
  readonly maps: UsernsEntry | undefined;
}

/** How a file stands in `savedFiles`. */
export function fileKey({ dev, ino }: { readonly dev: bigint; readonly ino: bigint }): string {
  return `${deviceMajor(dev)}:${deviceMinor(dev)}:${ino}`;
}

/**
 * Collects the mounts of all mount namespaces of a tree.
 *
 * @throws RepriseError UNSUPPORTED naming a mount that can neither be saved nor made from another one.
 */
export function collectMounts(
  namespaces: CollectedNamespaces,
  options: NamespacesDumpOptions,
): MountNamespaces {
  const own = namespaces.all.filter(({ kind }) => kind === "mnt");
  const user = namespaces.ofRoot("user");
  const maps = user === undefined ? undefined : collectMaps(user.pid);
  const innerId = idTranslation(maps);
  const open: number[] = [];
  const closeLater = (fd: number): void => void open.push(fd);
  let host: readonly Mount[] | undefined;
  const hostMounts = (): readonly Mount[] => (host ??= readMountinfo(process.pid));
  const cgroupRoots = new Map<number, string>();
  const all = own.map((namespace) =>
    collectOne(namespace, { namespaces, options, innerId, hostMounts, closeLater, cgroupRoots }),
  );
  checkMounts(all, maps !== undefined);
  return {
    all,
    innerId,
    maps,
    hasOwnQueues: namespaces.all.some(({ kind }) => kind === "ipc"),
    savedFiles: new Set(),
    kernelPipes: new Set(all.flatMap(({ entries }) => requestPipes(entries))),
    closeLater,
    close: () => open.splice(0).forEach((fd) => closeSync(fd)),
    ofTask: (pid) => {
      const namespace = all.length === 0 ? undefined : namespaces.ofTask(pid, "mnt");
      return all.find((one) => one.namespace === namespace);
    },
  };
}

interface Context {
  readonly namespaces: CollectedNamespaces;
  readonly options: NamespacesDumpOptions;
  readonly innerId: MountNamespaces["innerId"];
  readonly hostMounts: () => readonly Mount[];
  readonly closeLater: (fd: number) => void;
  /** Filled with the root task's mounts, which come first. */
  readonly cgroupRoots: Map<number, string>;
}

function collectOne(namespace: CollectedNamespace, context: Context): CollectedMounts {
  const { options, namespaces, innerId, hostMounts, closeLater, cgroupRoots } = context;
  const { skip = [], enableFs = [] } = options.mounts ?? {};
  const view = viewOf(namespace, closeLater);
  // Where the root task lives in the engine's mount namespace, what others have of its mounts is there at the restore, too.
  const isAlone = namespaces.ofRoot("mnt") === undefined;
  const external = externalMounts(options.external ?? [], options.mounts);
  const procOf = namespaces.all.some(({ kind, role }) => kind === "pid" && role === "nested")
    ? procOwners(view, namespaces)
    : undefined;
  const debug = new Set(
    view.mounts.filter(({ fsType }) => fsType === "debugfs").map(({ mntId }) => mntId),
  );
  const mounts = view.mounts.filter(
    // What the kernel mounts below debugfs on its own comes with that.
    ({ mountPoint, fsType, parentId }) =>
      !skip.includes(mountPoint) && !(plainName(fsType) === "tracefs" && debug.has(parentId)),
  );
  for (const { fsType, devMajor, devMinor, root } of mounts) {
    if (namespace.role !== "root" || !/^cgroup2?$/.test(fsType)) continue;
    const device = kernelDevice(devMajor, devMinor);
    const known = cgroupRoots.get(device);
    if (known === undefined || root.length < known.length) cgroupRoots.set(device, root);
  }
  const record = {
    enabled: enableFs.flatMap((words) => words.split(",")),
    hostDevpts: hostDevpts(hostMounts),
    cgroupRoots: namespaces.ofRoot("cgroup") === undefined ? undefined : cgroupRoots,
    innerId,
  };
  const idmaps = mounts.some(({ options: words }) => words.includes("idmapped"))
    ? readIdmaps(namespace.pid)
    : undefined;
  const entries = resolveExternal(
    // The order of CRIU's list: children before their parents.
    mounts
      .map((mount) => ({
        ...mountRecord(mount, record),
        ...procOf?.(mount),
        ...(idmaps?.has(mount.mntId) === true ? { idmap: idmaps.get(mount.mntId) } : {}),
      }))
      .toReversed(),
    {
      external: isAlone ? { ...external, automatic: true, sharing: true, masters: true } : external,
      host: hostMounts,
      isRootNamespace: namespace.role === "root",
      isAlone,
    },
  );
  return {
    namespace,
    prefix: view.prefix,
    entries,
    byId: new Map(entries.map((entry) => [entry.mnt_id, entry])),
  };
}

/** The further pid namespaces that mounted proc file systems show, by what the first process in one is in. */
function procOwners(
  { mounts, prefix }: View,
  namespaces: CollectedNamespaces,
): (mount: Mount) => { pid_ns_id?: number } {
  const known = new Map<string, number>();
  for (const { mountPoint, root, devMajor, devMinor } of mounts.filter(isProc)) {
    if (root !== "/") continue;
    try {
      const inode = parseNamespaceLink(readlinkSync(`${prefix}${mountPoint}/1/ns/pid`));
      const id = inode === undefined ? undefined : namespaces.idOf("pid", inode);
      const found = namespaces.all.find((one) => one.kind === "pid" && one.id === id);
      // The topmost mount there is what the path leads to.
      const { dev } = statSync(`${prefix}${mountPoint}`, { bigint: true });
      const isThis = deviceMajor(dev) === devMajor && deviceMinor(dev) === devMinor;
      if (isThis && found?.role === "nested") known.set(`${devMajor}:${devMinor}`, found.id);
    } catch (error) {
      log.debug(
        `the proc file system at ${mountPoint} does not tell its namespace: ${String(error)}`,
      );
    }
  }
  return (mount) => {
    const id = known.get(`${mount.devMajor}:${mount.devMinor}`);
    return id === undefined || !isProc(mount) ? {} : { pid_ns_id: id };
  };
}

function isProc({ fsType }: Mount): boolean {
  return fsType === "proc";
}

interface View {
  readonly mounts: readonly Mount[];
  readonly prefix: string;
}

/** All mounts of a namespace, and the way to its root: a task whose root was changed shows only what is below that. */
function viewOf({ pid }: CollectedNamespace, closeLater: (fd: number) => void): View {
  if (readlinkSync(`/proc/${pid}/root`) === "/")
    return { mounts: readMountinfo(pid), prefix: `/proc/${pid}/root` };
  const proc = openSync("/proc", O_PATH | O_DIRECTORY);
  try {
    return inNamespace("mnt", { pid }, () => {
      const root = openSync("/", O_PATH | O_DIRECTORY);
      closeLater(root);
      const name = Buffer.from("thread-self/mountinfo\0");
      const fd = syscall("openat", proc, name, O_RDONLY | O_CLOEXEC, 0);
      try {
        const mounts = parseMountinfo(readFileSync(fd, "utf8"));
        return { mounts, prefix: `/proc/self/fd/${root}` };
      } finally {
        closeSync(fd);
      }
    });
  } finally {
    closeSync(proc);
  }
}

function hostDevpts(hostMounts: () => readonly Mount[]): number | undefined {
  const mount = hostMounts().find(
    ({ mountPoint, fsType }) => mountPoint === "/dev/pts" && fsType === "devpts",
  );
  return mount === undefined ? undefined : kernelDevice(mount.devMajor, mount.devMinor);
}

const OVERFLOW_ID = 65534;

function idTranslation(maps: UsernsEntry | undefined): MountNamespaces["innerId"] {
  if (maps === undefined) return (_, outer) => outer;
  return (kind, outer) =>
    idInside(kind === "uid" ? maps.uid_map : maps.gid_map, outer) ?? OVERFLOW_ID;
}

/** Every mount must be one that a restore can make: new, from outside, or from another one (plan.ts). */
function checkMounts(all: readonly CollectedMounts[], isMapped: boolean): void {
  const entries = all.flatMap((one) => one.entries);
  const root = all.find(({ namespace }) => namespace.role === "root");
  const rootEntry = root?.entries.find(
    (entry) => entry.mountpoint === "/" && !root.byId.has(entry.parent_mnt_id),
  );
  const given = entries.filter((entry) => entry.ext_key !== undefined || entry === rootEntry);
  const isGiven = ({ root_dev, root: path }: MntEntry): boolean =>
    given.some((from) => from.root_dev === root_dev && relativeTo(path, from.root) !== undefined);
  for (const entry of entries) {
    if (entry.idmap !== undefined && entry.ext_key === undefined && isMapped)
      refuse(entry, "it shows other owners (idmapped), and the tree is in a user namespace");
    if (entry.ext_key !== undefined || isGiven(entry)) continue;
    // Who has made it for a container within sees the directories; who lives there need not.
    const maker =
      root?.entries.some(({ root_dev }) => root_dev === entry.root_dev) === true
        ? root
        : all.find((one) => one.byId.get(entry.mnt_id) === entry);
    const fault = faultOfLayers(entry, { seen: maker?.prefix ?? "", made: root?.prefix ?? "" });
    if (fault !== undefined) refuse(entry, fault);
    if (entry.fstype === Fstype.FUSE) {
      refuse(entry, "a server stands behind this file system, which cannot be saved");
    }
    if (showsMost(entries, entry) === undefined)
      refuse(
        entry,
        "it shows a part of a file system of which no other mount of the tree shows all",
      );
    if (fileSystemOf(entry) === undefined)
      refuse(entry, "its file system can neither be saved nor mounted again");
  }
}

function refuse(entry: MntEntry, why: string): never {
  throw new RepriseError(
    "UNSUPPORTED",
    `cannot dump the mount ${entry.mountpoint} (${entry.source}, ${entry.root}): ${why}`,
    {
      hint: "Declare it external (--external mnt[MOUNTPOINT]:NAME, or mnt[] for all that come from outside), or leave it out (--skip-mnt).",
    },
  );
}
