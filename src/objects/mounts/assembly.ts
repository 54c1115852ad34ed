// Putting the mounts of a tree together in the root task: binds of the sources are moved to their places, further mount namespaces are
// made and left again, peer groups are set last, when nothing spreads any more. See mount_namespaces(7), pivot_root(2).

import { RepriseError } from "../../errors.ts";
import { Fstype } from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import {
  AT_FDCWD,
  AT_REMOVEDIR,
  F_DUPFD,
  O_DIRECTORY,
  O_PATH,
  O_RDONLY,
  S_IFREG,
} from "../../sys/abi/fcntl.ts";
import * as abi from "../../sys/abi/mount.ts";
import { CLONE_NEWNS } from "../../sys/abi/sched.ts";
import type { Argument, Program, Ref } from "../../tracee/program.ts";
import { pathArgument } from "../files/path.ts";
import { fillDeletedRoot } from "./deleted-root.ts";
import {
  ALL_ATTRIBUTES,
  bind,
  makePlace,
  move,
  PRIVATE,
  setAttributes,
  setIdmap,
} from "./calls.ts";
import { joinPath, relativeTo } from "./external.ts";
import type { OutsideMounts } from "./outside.ts";
import {
  isGiven,
  layersOfSource,
  type MountNode,
  type MountSource,
  type NamespacePlan,
  type PeerCopy,
  type PeerGroup,
} from "./plan.ts";
import { attributesOf, flagsOf } from "./record.ts";

/** The root task's mount namespace, where namespaces have numbers. */
export const ROOT_NAMESPACE = 0;

/** What the engine knows or wants when the tree is put together. */
export interface TreeOptions {
  /** What a mount whose root was deleted is. */
  readonly isDirectory: (node: MountNode) => boolean;
  /** Whether a directory is there below the root of a source. */
  readonly exists: (source: MountSource, below: string) => boolean;
  /** Descriptors that stay are moved above this number. */
  readonly above: number;
  /** Whether the sources are needed later on, for deleted files. */
  readonly keepSources: boolean;
}

/** What the first program of the root task has made. */
export interface Yard {
  readonly fd: number;
  readonly hostRoot: number;
  readonly hostNamespace: number;
  readonly sources: ReadonlyMap<number, number>;
  /** What the root task comes back to, when it lives in the engine's mount namespace. */
  readonly own?: { readonly namespace: number; readonly root: number };
  /** Copies for the groups that have peers or masters outside. */
  readonly groups: ReadonlyMap<number, number>;
}

/** Puts a member of a peer group into the yard. */
export function addPeer(
  program: Program,
  { group, copy, source }: { group: PeerGroup; copy: PeerCopy; source: Argument },
  { yard, isDirectory: isDir }: { yard: Argument; isDirectory: boolean },
): Ref {
  const what = `a member of peer group ${group.shared}:${group.master}`;
  const place = program.string(`g${copy.index}`);
  const fd = bind(program, source, { below: "", what });
  makePlace(program, yard, { place, isDirectory: isDir });
  move(program, fd, { to: yard, place, what });
  return fd;
}

/** Putting mounts together, call by call. */
export class Assembly {
  readonly #program: Program;
  readonly #yard: Yard;
  readonly #options: TreeOptions;
  readonly #outside: OutsideMounts;
  readonly #binds = new Map<MountNode, Ref>();
  readonly #placed = new Set<MountNode>();
  /** Sources that were made when the tree was in its place. */
  readonly #layered = new Map<number, Ref>();
  /** Members of peer groups in the yard. */
  readonly #peers = new Map<number, Argument>();
  /** What stands for a deleted root for a while, deepest last. */
  readonly #deleted: {
    readonly source: Argument;
    readonly below: string;
    readonly isDirectory: boolean;
  }[] = [];

  constructor(
    program: Program,
    yard: Yard,
    { outside, ...options }: TreeOptions & { readonly outside: OutsideMounts },
  ) {
    this.#program = program;
    this.#yard = yard;
    this.#options = options;
    this.#outside = outside;
  }

  /** Read-only file systems were writable until they had their content. */
  finishSources(sources: readonly MountSource[]): void {
    const program = this.#program;
    program.call("fchdir", [this.#yard.fd]);
    for (const { index, from } of sources) {
      if (from.kind !== "new" || from.type.content !== "memory") continue;
      const { superblock } = flagsOf(from.entry);
      if ((superblock & abi.MS_RDONLY) === 0) continue;
      const data = from.entry.options === "" ? 0 : pathArgument(program, from.entry.options);
      program.call(
        "mount",
        [0, program.string(`s${index}`), 0, abi.MS_REMOUNT | superblock, data],
        { label: `make the file system of ${from.entry.mountpoint} read-only` },
      );
    }
  }

  /** Makes the mounts of a namespace, without a place yet: those of which there is a source. */
  bind({ mounts }: NamespacePlan): void {
    for (const node of mounts) {
      if (node.isTerminal || node.source.from.kind === "late" || this.#binds.has(node)) continue;
      if (layersOfSource(node.source) !== undefined && !this.#layered.has(node.source.index))
        continue;
      const { entry, source } = node;
      const below = this.#below(node);
      if (entry.deleted === true) this.#recreate(node);
      const fd = bind(this.#program, this.#source(source), { below, what: entry.mountpoint });
      setAttributes(
        this.#program,
        fd,
        { set: attributesOf(entry), clear: ALL_ATTRIBUTES, propagation: abi.MS_PRIVATE },
        entry.mountpoint,
      );
      // One of outside has its own already.
      if (entry.idmap !== undefined && !isGiven(node))
        setIdmap(this.#program, fd, {
          userNamespace: this.#outside.idmaps.of(entry.idmap),
          what: entry.mountpoint,
        });
      this.#binds.set(node, fd);
    }
  }

  /**
   * Mounts what is made from directories of the tree, each when these are there, with the root's tree in the yard and seen from inside
   * of it.
   */
  addLayered(sources: readonly MountSource[], namespaces: readonly NamespacePlan[]): void {
    const program = this.#program;
    const [root] = namespaces;
    const top = root?.mounts[0];
    if (root === undefined || top === undefined) return;
    this.place(root, { at: this.#yard.fd });
    let waiting = sources;
    while (waiting.length > 0) {
      const ready = waiting.filter((source) => this.#hasLayers(source, root));
      if (ready.length === 0) {
        const [first] = waiting.flatMap(({ from }) => (from.kind === "new" ? [from.entry] : []));
        throw new RepriseError(
          "UNSUPPORTED",
          `cannot restore the mount ${first?.mountpoint}: its layers are on mounts that are made from others in a circle`,
        );
      }
      for (const source of ready) this.#addOne(source, this.#fd(top));
      for (const namespace of namespaces) this.bind(namespace);
      this.place(root, { at: this.#yard.fd });
      waiting = waiting.filter((source) => !ready.includes(source));
    }
    this.#goTo(this.#yard.hostRoot);
    program.call("fchdir", [this.#yard.fd]);
  }

  /** Whether all mounts that the layers of a source are on are in their places. */
  #hasLayers(source: MountSource, { mounts }: NamespacePlan): boolean {
    return (layersOfSource(source) ?? []).every((layer) => {
      const on = mounts
        .filter(({ entry }) => relativeTo(layer, entry.mountpoint) !== undefined)
        .toSorted((a, b) => b.entry.mountpoint.length - a.entry.mountpoint.length)[0];
      return on === undefined || this.#placed.has(on);
    });
  }

  #addOne({ index, from }: MountSource, root: Ref): void {
    if (from.kind !== "new") return;
    const program = this.#program;
    const { entry, type } = from;
    const label = `mount ${type.name} for ${entry.mountpoint}`;
    const place = program.string(`s${index}`);
    makePlace(program, this.#yard.fd, { place, isDirectory: true });
    const covered = program.call("openat", [this.#yard.fd, place, O_PATH | O_DIRECTORY, 0], {
      label,
    });
    this.#goTo(root);
    program.call("fchdir", [covered]);
    const { mount, superblock } = flagsOf(entry);
    const data = pathArgument(program, entry.options);
    const here = program.string(".");
    program.call(
      "mount",
      [
        pathArgument(program, entry.source),
        here,
        program.string(type.name),
        mount | superblock,
        data,
      ],
      { label, hint: "The directories that it is made from must be as they were." },
    );
    program.call("close", [covered]);
    const fd = program.call("openat", [this.#yard.fd, place, O_PATH, 0], { label });
    setAttributes(program, fd, PRIVATE);
    this.#layered.set(index, fd);
  }

  /** Makes a directory the root of the task that puts all together. */
  #goTo(directory: Argument): void {
    this.#program.call("fchdir", [directory]);
    this.#program.call("chroot", [this.#program.string(".")], { label: "look from another root" });
  }

  /** Makes a mount namespace with its tree, and comes back. */
  nest(namespace: NamespacePlan): { id: number; namespaceFd: Ref; rootFd: Ref } {
    const program = this.#program;
    const what = `mount namespace ${namespace.id}`;
    program.call("unshare", [CLONE_NEWNS], { label: `make ${what}` });
    // The copy has the old root, and the yard on top of it; its own root goes on top of that.
    const self = program.string("/proc/self/ns/mnt");
    const opened = program.call("openat", [AT_FDCWD, self, O_RDONLY, 0], { label: `open ${what}` });
    const namespaceFd = this.#keep(opened, what);
    this.place(namespace, { at: AT_FDCWD, path: "/" });
    this.#pivot(namespace)();
    const root = program.call("openat", [AT_FDCWD, program.string("/"), O_PATH, 0], {
      label: `open the root of ${what}`,
    });
    const rootFd = this.#keep(root, what);
    program.call("setns", [this.#yard.hostNamespace, CLONE_NEWNS], { label: `leave ${what}` });
    // setns makes the topmost mount the root, which is the yard.
    program.call("fchdir", [this.#yard.hostRoot]);
    program.call("chroot", [program.string(".")], { label: `leave ${what}` });
    return { id: namespace.id, namespaceFd, rootFd };
  }

  /** With further namespaces, the root task needs a way back to its own. */
  keepOwn(): { id: number; namespaceFd: Ref; rootFd: Ref } {
    const label = "keep the mount namespace of the root";
    const { hostNamespace, own } = this.#yard;
    const args = [own?.namespace ?? hostNamespace, F_DUPFD, this.#options.above];
    const namespaceFd = this.#program.call("fcntl", args, { label });
    return { id: ROOT_NAMESPACE, namespaceFd, rootFd: namespaceFd };
  }

  /** Leaves the place where mounts of other tasks were made. */
  goHome(): void {
    const { own } = this.#yard;
    if (own === undefined) return;
    const label = "go back to the root's mount namespace";
    this.#program.call("setns", [own.namespace, CLONE_NEWNS], { label });
    this.#program.call("fchdir", [own.root], { label });
    this.#program.call("chroot", [this.#program.string(".")], { label });
    this.#program.call("close", [own.namespace]);
    this.#program.call("close", [own.root]);
  }

  /** Binds that wait until what they are put on is there. */
  keepLate(): Map<MountNode, Ref> {
    const label = "keep a mount for later";
    const late = [...this.#binds].filter(([{ isLate }]) => isLate);
    return new Map(
      late.map(([node, fd]) => {
        const args = [fd, F_DUPFD, this.#options.above];
        return [node, this.#program.call("fcntl", args, { label })];
      }),
    );
  }

  keepSources(sources: readonly MountSource[]): Map<MountSource, Ref> {
    return new Map(
      sources.map((source) => {
        const args = [this.#source(source), F_DUPFD, this.#options.above];
        return [source, this.#program.call("fcntl", args, { label: "keep a file system" })];
      }),
    );
  }

  /** Moves every mount of a namespace to its place, if it has none yet. */
  place({ mounts }: NamespacePlan, root: { readonly at: Argument; readonly path?: string }): void {
    const program = this.#program;
    const placed: MountNode[] = [];
    for (const node of mounts) {
      if (node.isTerminal || node.isLate || this.#placed.has(node)) continue;
      const { parent, at, entry } = node;
      const what = entry.mountpoint;
      // What is made from directories of the tree comes later, with what is on it.
      const fd = this.#binds.get(node);
      if (fd === undefined || (parent !== undefined && !this.#placed.has(parent))) continue;
      this.#placed.add(node);
      placed.push(node);
      if (parent === undefined) {
        const name = root.path ?? "root";
        if (root.path === undefined)
          makePlace(program, root.at, { place: program.string(name), isDirectory: true });
        move(program, fd, { to: root.at, place: program.string(name), what: "the root" });
      } else {
        const place = pathArgument(program, at);
        const hint =
          "The mount point must be there: a directory for a directory, a file for a file.";
        move(program, fd, { to: this.#fd(parent), place, what, hint });
      }
    }
    for (const node of placed) {
      if (node.isUnbindable) {
        const attributes = { set: 0, clear: 0, propagation: abi.MS_UNBINDABLE };
        setAttributes(program, this.#fd(node), attributes, node.entry.mountpoint);
      }
    }
  }

  /** Gives the members of a peer group their peers and their master. */
  join(group: PeerGroup): void {
    const what = `peer group ${group.shared}:${group.master}`;
    for (const copy of group.copies) {
      const fd = this.#yard.groups.get(copy.index) ?? this.#peer(group, copy);
      this.#peers.set(copy.index, fd);
      const propagate = (propagation: number): void =>
        setAttributes(this.#program, fd, { set: 0, clear: 0, propagation }, what);
      const { masterGroup } = group;
      if (masterGroup !== undefined) {
        const masters = masterGroup.copies;
        const master = masters.find(({ source }) => source === copy.source) ?? masters[0];
        this.#setGroup(this.#peers.get(master?.index ?? -1) ?? -1, fd, what);
      }
      if (!group.withHost && group.master !== 0) propagate(abi.MS_SLAVE);
      // A peer of the host's stays one; where the host's is shared with nobody now, the tree's are among themselves.
      if (group.shared !== 0) propagate(abi.MS_SHARED);
      for (const member of copy.members.filter(({ isTerminal }) => !isTerminal))
        this.#setGroup(fd, this.#fd(member), member.entry.mountpoint);
    }
  }

  /** Roots that were deleted are so again. */
  removeDeleted(): void {
    for (const { source, below, isDirectory: isDir } of this.#deleted.toReversed()) {
      const args = [source, pathArgument(this.#program, below), isDir ? AT_REMOVEDIR : 0];
      this.#program.call("unlinkat", args, {
        label: `delete the root of a mount again (${below})`,
      });
    }
  }

  /** Makes a namespace's root the root; what is given adds the calls that leave everything else behind. */
  enter(namespace: NamespacePlan): () => void {
    return this.#pivot(namespace);
  }

  /** Closes what only building needed. */
  close(): void {
    const { fd, hostRoot, hostNamespace, sources } = this.#yard;
    const open: Argument[] = [
      fd,
      hostRoot,
      ...(hostNamespace < 0 ? [] : [hostNamespace]),
      ...sources.values(),
      ...this.#layered.values(),
      ...this.#peers.values(),
      ...this.#binds.values(),
    ];
    const inherited = [...this.#outside.fds.values()].map((copy) => copy.fd);
    for (const argument of new Set([...open, ...inherited, ...this.#outside.idmaps.all]))
      this.#program.call("close", [argument]);
  }

  #pivot({ mounts: [root] }: NamespacePlan): () => void {
    const program = this.#program;
    const here = program.string(".");
    const label = "make the root of the tree the root";
    const old = program.call("openat", [AT_FDCWD, program.string("/"), O_PATH | O_DIRECTORY, 0], {
      label,
    });
    program.call("fchdir", [this.#fd(root as MountNode)], { label });
    // The old root ends on top of the new one, where only its descriptor leads to it (pivot_root(2)).
    program.call("pivot_root", [here, here], {
      label,
      hint: "The engine's own root must be a mount, not the initial ramfs.",
    });
    return () => this.#leave(old);
  }

  #leave(old: Ref): void {
    const program = this.#program;
    const here = program.string(".");
    program.call("fchdir", [old]);
    // A path of umount2 leads to the topmost mount: the yard goes first.
    for (const what of ["the place of new mounts", "the mounts of outside"]) {
      program.call("umount2", [here, abi.MNT_DETACH], { label: `leave ${what}` });
    }
    program.call("close", [old]);
    program.call("chdir", [program.string("/")], { label: "go to the root of the tree" });
  }

  #peer(group: PeerGroup, copy: PeerCopy): Ref {
    const source = this.#source(copy.source);
    return addPeer(
      this.#program,
      { group, copy, source },
      {
        yard: this.#yard.fd,
        // A file of outside can be mounted, too, and be shared.
        isDirectory: this.#outside.fds.get(copy.source.index)?.isDirectory ?? true,
      },
    );
  }

  #setGroup(from: Argument, to: Argument, what: string): void {
    const program = this.#program;
    const empty = program.string("");
    const flags =
      abi.MOVE_MOUNT_SET_GROUP | abi.MOVE_MOUNT_F_EMPTY_PATH | abi.MOVE_MOUNT_T_EMPTY_PATH;
    program.call("move_mount", [from, empty, to, empty, flags], {
      label: `give ${what} its peer group`,
      hint: "MOVE_MOUNT_SET_GROUP needs Linux 5.15 or later.",
    });
  }

  /** Whoever brings the cgroups of a container may bring others than it had: containers within have no place of their own there. */
  #below({ entry, source, below }: MountNode): string {
    const isCgroup = entry.fstype === Fstype.CGROUP || entry.fstype === Fstype.CGROUP2;
    if (!isCgroup || below === "" || source.from.kind !== "path") return below;
    if (this.#options.exists(source, below)) return below;
    log.warn(`${entry.mountpoint} shows all of ${source.from.path}: there is no ${below} in it`);
    return "";
  }

  /** A root that was deleted lives for as long as it takes to bind it. */
  #recreate(node: MountNode): void {
    const { source, below, entry } = node;
    const program = this.#program;
    const fd = this.#source(source);
    const label = `make the deleted root of the mount ${entry.mountpoint} again`;
    const make = (path: string, isDir: boolean): void => {
      const name = pathArgument(program, path);
      if (isDir) program.call("mkdirat", [fd, name, 0o700], { label });
      else program.call("mknodat", [fd, name, S_IFREG | 0o600, 0], { label });
      this.#deleted.push({ source: fd, below: path, isDirectory: isDir });
    };
    const made = (path: string): boolean =>
      this.#deleted.some((known) => known.source === fd && known.below === path);
    const parts = below.split("/");
    for (let depth = 1; depth < parts.length; depth++) {
      const path = parts.slice(0, depth).join("/");
      if (!made(path) && !this.#options.exists(source, path)) make(path, true);
    }
    if (made(below)) return;
    make(below, isDirectory(node, this.#options));
    fillDeletedRoot(program, entry, { directory: fd, path: below });
  }

  #keep(fd: Ref, what: string): Ref {
    const kept = this.#program.call("fcntl", [fd, F_DUPFD, this.#options.above], {
      label: `keep ${what} open`,
    });
    this.#program.call("close", [fd]);
    return kept;
  }

  #source({ index }: MountSource): Argument {
    return this.#layered.get(index) ?? this.#yard.sources.get(index) ?? -1;
  }

  #fd(node: MountNode): Ref {
    const fd = this.#binds.get(node);
    if (fd === undefined)
      throw new RepriseError("INTERNAL", `internal error: ${joinPath("", node.at)} is not bound`);
    return fd;
  }
}

/** Sets of CRIU do not tell. */
function isDirectory(node: MountNode, options: TreeOptions): boolean {
  const { gone } = node.entry;
  return gone === undefined ? options.isDirectory(node) : gone.content === undefined;
}
