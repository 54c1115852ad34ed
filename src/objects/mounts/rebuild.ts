// Building the mounts of a tree in the new mount namespace of its root task, which begins as a copy of the engine's. A yard, a
// tmpfs on top of the old root that only descriptors lead to, holds the sources; every mount of the tree is a bind of one of
// them, made without a place (open_tree) and then moved to it. The last call leaves the old tree behind by pivot_root. See
// mount_namespaces(7), move_mount(2).

import { RepriseError } from "../../errors.ts";
import { openOwn } from "../namespaces/nested.ts";
import { CLONE_NEWNS } from "../../sys/abi/sched.ts";
import { AT_FDCWD, O_DIRECTORY, O_PATH, O_RDONLY } from "../../sys/abi/fcntl.ts";
import * as abi from "../../sys/abi/mount.ts";
import { Program, type Argument, type ProgramResult, type Ref } from "../../tracee/program.ts";
import { pathArgument } from "../files/path.ts";
import type { AutofsPlaces, AutofsRestore } from "./autofs.ts";
import { addPeer, Assembly, type TreeOptions, type Yard } from "./assembly.ts";
import { makePlace, move, PRIVATE, setAttributes } from "./calls.ts";
import type { OutsideMounts } from "./outside.ts";
import type { KeptMounts } from "./places.ts";
import {
  layersOfSource,
  type MountPlan,
  type MountSource,
  type PeerCopy,
  type PeerGroup,
} from "./plan.ts";
import { flagsOf } from "./record.ts";

/** What the engine has to do between the two programs of the root task. */
export interface MountedSources {
  /** Descriptor in the root task of a source's root. */
  fd(source: MountSource): number;
}

/**
 * Builds the mounts by two programs: `first` makes the sources, `second` puts the tree together when the engine has given the
 * new file systems their content.
 */
export class MountBuilder {
  readonly #plan: MountPlan;
  readonly #outside: OutsideMounts;
  readonly #autofs: AutofsRestore;
  #yard: Yard | undefined;

  constructor(
    plan: MountPlan,
    { outside, autofs }: { readonly outside: OutsideMounts; readonly autofs: AutofsRestore },
  ) {
    this.#plan = plan;
    this.#outside = outside;
    this.#autofs = autofs;
  }

  /** The first program, and what is to be done with its results. */
  sources(places: AutofsPlaces): {
    program: Program;
    done: (result: ProgramResult) => MountedSources;
  } {
    const program = new Program();
    this.#autofs.open(program, places);
    const { hasRoot } = this.#plan;
    const ownNamespace = hasRoot ? -1 : openOwn(program, "mnt");
    const ownRoot = hasRoot ? -1 : openRoot(program);
    if (!hasRoot)
      program.call("unshare", [CLONE_NEWNS], { label: "make a place for mounts of other tasks" });
    const label = "keep the mounts of the tree apart from those of outside";
    program.call("mount", [0, program.string("/"), 0, abi.MS_REC | abi.MS_PRIVATE, 0], { label });
    const open = (path: string, flags: number): Ref =>
      program.call("openat", [AT_FDCWD, program.string(path), flags, 0], { label: `open ${path}` });
    const hostRoot = open("/", O_PATH | O_DIRECTORY);
    const nested = this.#plan.namespaces.length > (hasRoot ? 1 : 0);
    const hostNamespace = nested ? open("/proc/self/ns/mnt", O_RDONLY) : -1;
    const yard = addYard(program);
    program.call("fchdir", [yard]);
    const sources = new Map<number, Argument>();
    for (const source of this.#plan.sources) {
      if (layersOfSource(source) !== undefined) continue;
      const options = this.#autofs.options(source, places);
      const what = { source, yard, outside: this.#outside, options };
      sources.set(source.index, addSource(program, what));
    }
    const groups = new Map<number, Argument>();
    for (const group of this.#plan.groups.filter(comesFromOutside)) {
      for (const copy of group.copies) {
        const what = { group, copy, outside: this.#outside };
        groups.set(copy.index, addOutsidePeer(program, what, { yard, sources }));
      }
    }
    for (const { index, from } of this.#plan.sources) {
      if (from.kind !== "new") setAttributes(program, sources.get(index) ?? -1, PRIVATE);
    }
    return {
      program,
      done: (result) => {
        const value = (arg: Argument): number =>
          typeof arg === "number" ? arg : result.value(arg as Ref);
        const values = (from: ReadonlyMap<number, Argument>): Map<number, number> =>
          new Map([...from].map(([key, arg]) => [key, value(arg)]));
        const made: Yard = {
          fd: value(yard),
          hostRoot: value(hostRoot),
          hostNamespace: value(hostNamespace),
          sources: values(sources),
          groups: values(groups),
          ...(hasRoot ? {} : { own: { namespace: value(ownNamespace), root: value(ownRoot) } }),
        };
        this.#yard = made;
        return { fd: (source) => made.sources.get(source.index) ?? -1 };
      },
    };
  }

  /** The second program. */
  tree(options: TreeOptions & AutofsPlaces): {
    program: Program;
    done: (result: ProgramResult) => KeptMounts;
  } {
    const yard = this.#yard;
    if (yard === undefined) throw new RepriseError("INTERNAL", "internal error: no sources yet");
    const program = new Program();
    const assembly = new Assembly(program, yard, { ...options, outside: this.#outside });
    const { namespaces, groups, hasRoot } = this.#plan;
    assembly.finishSources(this.#plan.sources);
    for (const namespace of namespaces) assembly.bind(namespace);
    const layered = this.#plan.sources.filter((source) => layersOfSource(source) !== undefined);
    if (layered.length > 0) assembly.addLayered(layered, namespaces);
    const nested = namespaces.slice(hasRoot ? 1 : 0);
    const made = nested.map((namespace) => assembly.nest(namespace));
    const [root] = namespaces;
    if (!hasRoot || root === undefined) {
      made.push(assembly.keepOwn());
      groups.forEach((group) => assembly.join(group));
      assembly.removeDeleted();
      assembly.goHome();
    } else {
      if (nested.length > 0) made.push(assembly.keepOwn());
      assembly.place(root, { at: yard.fd });
      const leave = assembly.enter(root);
      // Not before: pivot_root refuses a shared root.
      groups.forEach((group) => assembly.join(group));
      assembly.removeDeleted();
      leave();
    }
    const late = assembly.keepLate();
    const sourceFd = (source: MountSource): number => yard.sources.get(source.index) ?? -1;
    this.#autofs.keep(program, { ...options, fd: sourceFd });
    const sources = options.keepSources ? assembly.keepSources(this.#plan.sources) : new Map();
    assembly.close();
    return {
      program,
      done: (result) => ({
        namespaces: new Map(
          made.map(({ id, namespaceFd, rootFd }) => [
            id,
            { namespace: result.value(namespaceFd), root: result.value(rootFd) },
          ]),
        ),
        sources: new Map([...sources].map(([source, fd]) => [source, result.value(fd)])),
        late: new Map([...late].map(([node, fd]) => [node, result.value(fd)])),
        autofs: this.#autofs.owners((ref) => result.value(ref)),
      }),
    };
  }
}

function openRoot(program: Program): Ref {
  return program.call("openat", [AT_FDCWD, program.string("/"), O_PATH | O_DIRECTORY, 0], {
    label: "open the root",
  });
}

/** A tmpfs on top of the old root: paths do not lead into it, its descriptor does. */
function addYard(program: Program): Ref {
  const label = "make a place for new mounts";
  const context = program.call("fsopen", [program.string("tmpfs"), 0], { label });
  program.call("fsconfig", [context, abi.FSCONFIG_CMD_CREATE, 0, 0, 0], { label });
  const yard = program.call("fsmount", [context, 0, 0], { label });
  program.call("close", [context]);
  const empty = program.string("");
  program.call(
    "move_mount",
    [yard, empty, AT_FDCWD, program.string("/"), abi.MOVE_MOUNT_F_EMPTY_PATH],
    { label },
  );
  return yard;
}

function addSource(
  program: Program,
  what: {
    source: MountSource;
    yard: Argument;
    outside: OutsideMounts;
    /** Other options than the saved ones. */
    options: string | undefined;
  },
): Argument {
  const { source, yard, outside } = what;
  const place = program.string(`s${source.index}`);
  const copy = outside.fds.get(source.index);
  if (source.from.kind !== "new" || copy !== undefined) {
    if (copy === undefined) throw new RepriseError("INTERNAL", "internal error: mount not copied");
    makePlace(program, yard, { place, isDirectory: copy.isDirectory });
    move(program, copy.fd, { to: yard, place, what: "a mount of outside" });
    return copy.fd;
  }
  const { entry, type, device } = source.from;
  makePlace(program, yard, { place, isDirectory: true });
  const { mount, superblock } = flagsOf(entry);
  const readOnly = type.content === "memory" ? abi.MS_RDONLY : 0;
  const options = what.options ?? entry.options;
  const data = options === "" ? 0 : pathArgument(program, options);
  program.call(
    "mount",
    [
      pathArgument(program, device ?? entry.source),
      place,
      program.string(type.name),
      (mount | superblock) & ~readOnly,
      data,
    ],
    {
      label: `mount ${type.name} for ${entry.mountpoint}`,
      hint: "The kernel must know this file system, and its options must be allowed to whom is restored.",
    },
  );
  return program.call("openat", [yard, place, O_PATH, 0], { label: "open a new mount" });
}

/** Whether a group has peers or its master in the engine's namespace: both come with a copy of a mount from there. */
function comesFromOutside({ withHost, master, masterGroup }: PeerGroup): boolean {
  return withHost || (master !== 0 && masterGroup === undefined);
}

function addOutsidePeer(
  program: Program,
  { group, copy, outside }: { group: PeerGroup; copy: PeerCopy; outside: OutsideMounts },
  { yard, sources }: { yard: Argument; sources: ReadonlyMap<number, Argument> },
): Ref {
  const source = sources.get(copy.source.index);
  const original = outside.fds.get(copy.source.index);
  if (source === undefined || original === undefined) {
    const [member] = copy.members;
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot restore the mount ${member?.entry.mountpoint}: it received mounts from outside of the tree`,
      {
        hint: "Only external mounts can: dump with --enable-external-masters and --external mnt[].",
      },
    );
  }
  return addPeer(program, { group, copy, source }, { yard, isDirectory: original.isDirectory });
}
