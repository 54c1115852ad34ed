// What every kind of namespace has in common: how its room is asked at dump and at restore. registry.ts lists the rooms; a kind
// without a room is refused.

import type { ImageSetWriter } from "../../images/image-set.ts";
import type { LoadedSet } from "../../images/check-set.ts";
import type { Program, ProgramResult, Ref } from "../../tracee/program.ts";
import type { MountNamespaces } from "../mounts/collect.ts";
import type { PreparedMounts } from "../mounts/mnt.ts";
import type { LateMounts } from "../mounts/late.ts";
import type { MountPlaces } from "../mounts/places.ts";
import type { MountOptions } from "../mounts/options.ts";
import type { NetworkLock } from "../network/lock.ts";
import type { CollectedNamespace, CollectedNamespaces } from "./collect.ts";
import type { NamespaceKind } from "./kinds.ts";
import type { NamespacesPlan, PlannedNamespace } from "./plan.ts";

/** What a room may use while it saves namespaces. */
export interface NamespacesDump {
  readonly images: ImageSetWriter;
  readonly options: NamespacesDumpOptions;
  readonly namespaces: CollectedNamespaces;
  readonly mounts: MountNamespaces;
  /** The root task in the engine's pid namespace. */
  readonly rootPid: number;
  /** Keeps packets away; not there yet while tasks run. */
  readonly lock?: NetworkLock;
}

export interface NamespacesDumpOptions {
  /** What `--external` named, word for word; each room reads what is its own. @default [] */
  readonly external?: readonly string[];
  /** `--empty-ns net`: what is in network namespaces is not saved. @default false */
  readonly emptyNet?: boolean;
  readonly mounts?: MountOptions;
}

/** What a room may use while namespaces are made again. */
export interface NamespacesRestore {
  readonly set: LoadedSet;
  readonly options: NamespacesRestoreOptions;
  readonly plan: NamespacesPlan;
  /** The root task in the engine's pid namespace: /proc/PID/ns/KIND, /proc/PID/root. */
  readonly rootPid: number;
  /** What the root task has of the mounts of outside; undefined when it has no mount namespace of its own to fill. */
  readonly mounts: PreparedMounts | undefined;
  /**
   * Runs a program in the root task, which is alone at that time, in all the new namespaces, and root of its user namespace. One
   * stop a call: put what can be put into one program.
   */
  run(program: Program): ProgramResult;
  /** Runs a program in a child of the root task that lives no longer than that; it has copies of the root's descriptors. */
  runInChild(program: Program): void;
  /**
   * Runs a program in a task that has the descriptors of the root task and is root of the user namespace that a namespace belongs to: the
   * root task itself for its own, else one that ends soon.
   */
  runFor(namespace: PlannedNamespace, program: Program): ProgramResult;
  /**
   * Has a child of such a task, which shares its descriptors and lives no longer than that, run programs; `pid` is its number in the engine's
   * pid namespace.
   */
  runInHelper(
    namespace: PlannedNamespace,
    use: (helper: { readonly pid: number; run(program: Program): ProgramResult }) => void,
  ): void;
  /** Copies a mount namespace of the root task's into one that belongs to another user namespace; gives descriptors in the root task. */
  copyMounts(from: { readonly fd: number; readonly user: number; readonly id: number }): {
    readonly namespace: number;
    readonly root: number;
  };
  /** Tells what is mounted when the tree is there. */
  keepLateMounts(late: readonly LateMounts[]): void;
  /** The descriptor of a namespace that `setDescriptor` told. */
  descriptorOf(kind: NamespaceKind, id: number): number | undefined;
  /**
   * Adds a call to a program for the root task that moves a descriptor out of the way of those of the tasks. All tasks inherit it; it
   * is closed at the end of the restore.
   */
  keep(program: Program, fd: Ref | number, label: string): Ref;
  /** First number for descriptors that stay until the end of the restore. */
  readonly firstFreeFd: number;
  /** Tells where files are, once the mounts are there. */
  keepMounts(places: MountPlaces): void;
  /** Tells where the descriptor of a namespace of the tree is in all tasks, once `keep` has put it there. */
  setDescriptor(namespace: PlannedNamespace, fd: number): void;
  /** A descriptor of the engine's for `--inherit-fd fd[N]:KEY`; undefined when there is none of this key. */
  inherited(key: string): number | undefined;
  /** Adds steps for the end of the restore: just before the tasks are let go, or when it has failed. */
  atEnd(steps: { readonly release: () => void; readonly failed?: () => void }): void;
}

export interface NamespacesRestoreOptions {
  /** What `--external` named, word for word. @default [] */
  readonly external?: readonly string[];
  /** `--empty-ns net`: network namespaces are made, but left empty for the scripts. @default false */
  readonly emptyNet?: boolean;
  /** `--weak-sysctls`: settings that this kernel does not take are told and left out. @default false */
  readonly weakSysctls?: boolean;
  /** `--root`: the directory that becomes the root of the tree's mount namespace. */
  readonly root?: string;
  /** `--join-ns KIND:FILE`: existing namespaces that the tree is put into. @default [] */
  readonly join?: readonly JoinedNamespace[];
  /** `--inherit-fd fd[N]:KEY`: descriptors of the engine's by their keys. */
  readonly inheritFds?: ReadonlyMap<string, number>;
  readonly mounts?: MountOptions;
}

/** A namespace that exists already and that the root task enters. */
export interface JoinedNamespace {
  readonly kind: NamespaceKind;
  /** /proc/PID/ns/KIND or a file on which a namespace is mounted. */
  readonly path: string;
  /** Ids to take in a user namespace. @default 0 */
  readonly uid?: number;
  readonly gid?: number;
}

/** What was saved of a namespace while its tasks ran. */
export interface SavedAhead extends Disposable {
  /** In the place of `write`, while the tree is stopped. False: what was written holds no more, and `write` has to do it after all. */
  finish(dump: NamespacesDump): boolean;
}

/** A kind of namespace: its room's functions. */
export interface NamespaceRoom {
  readonly kind: NamespaceKind;
  /**
   * Saves a namespace while its tasks run, if it can be found out in next to no time later whether something has changed. Undefined
   * where it cannot: what was written until then is taken back by the caller, as it is when an error is thrown.
   */
  saveAhead?(namespace: CollectedNamespace, dump: NamespacesDump): SavedAhead | undefined;
  /**
   * Saves a namespace that is not the engine's and not external; called once for each, while the tree is stopped and before memory
   * is written.
   */
  write(namespace: CollectedNamespace, dump: NamespacesDump): void;
  /**
   * Fills the namespaces of this kind: the root's, which was made with the root task, and all further ones, which are the room's to
   * make (and to tell with `setDescriptor`). Called between the scripts "setup-namespaces" and "post-setup-namespaces", in the order
   * of the registry, for kinds of which the tree has a namespace that is `new`, and not for external and joined ones.
   */
  restore(namespaces: readonly PlannedNamespace[], restore: NamespacesRestore): void;
}
