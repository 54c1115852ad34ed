// What exists so far of a tree that is being restored, and where its programs and descriptors go.

import type { NamespaceKind } from "../objects/namespaces/kinds.ts";
import type { LateMounts } from "../objects/mounts/late.ts";
import type { MountPlaces } from "../objects/mounts/places.ts";
import type { PreparedMounts } from "../objects/mounts/mnt.ts";
import type { PlannedNamespace } from "../objects/namespaces/plan.ts";
import type { Program } from "../tracee/program.ts";
import type { Job } from "../tracee/run.ts";
import type { Tracee, TraceCounters } from "../tracee/tracee.ts";
import type { ImageFiles } from "./image-files.ts";
import type { RestorePlan } from "./plan.ts";

/** Namespaces that a task enters together: its mounts, its user namespace, or the others. */
export type EnteredKinds = "mounts" | "user" | "others";

/** What exists so far of a tree that is being restored. */
export interface Growth {
  /** Helpers that live for a while, in the engine's numbers. */
  readonly helpers: Set<number>;
  readonly counters: TraceCounters;
  /** undefined when the first task was made by the engine itself. */
  readonly seed: Tracee | undefined;
  /** pid 1 of a new pid namespace, if that is not the root task. */
  readonly init: Tracee | undefined;
  /** Leaders and threads by their number in the images. */
  readonly tracees: Map<number, Tracee>;
  readonly images: ImageFiles;
  /** Descriptor in all tasks of /dev/userfaultfd, where they cannot make userfaultfds without. */
  readonly userfaultDevice: number | undefined;
  /** Descriptor in all tasks of the engine's /proc, where labels have to be set, or time namespaces found in it. */
  readonly proc: number | undefined;
  /** Descriptors in all tasks of what the caller brought, by their keys. */
  readonly inheritedFds: ReadonlyMap<string, number>;
  /** Descriptors in all tasks of the namespaces that tasks do not share with the root. */
  readonly namespaceFds: Map<PlannedNamespace, number>;
  /** What a task has entered before it is filled. */
  readonly entered: Map<number, ReadonlySet<EnteredKinds>>;
  /** … and of the root's own, of which tasks have files open. */
  readonly rootNamespaceFds: Map<NamespaceKind, number>;
  /** What the root task has of the mounts of outside. */
  readonly mounts: PreparedMounts | undefined;
  /** Where its files are, when it has mounts of its own and they are there. */
  mountPlaces?: MountPlaces;
  /** What is mounted when the tree is there. */
  readonly lateMounts: LateMounts[];
  /** What rooms of namespaces want done at the end. */
  readonly ends: { readonly release: () => void; readonly failed?: () => void }[];
  /** Descriptor in all tasks of the file that sets the next number of a pid namespace, where that is needed. */
  lastPidFd?: number;
  /** Runs a program in a child of the root task, which ends then. */
  runInChild(program: Program): void;
  /** Number in the engine's pid namespace of a pid in the images. */
  outerPid(pid: number): number;
  /** Every process made, in the engine's numbers. */
  madePids(): number[];
}

/** Room between the descriptors of the tasks and those of the restore. */
const FD_MARGIN = 16;

/** First number for descriptors of the restore itself. */
export function firstPoolFd(plan: RestorePlan): number {
  return plan.firstFreeFd + FD_MARGIN;
}

/** A job for a task while no other one in its memory works: the program at the start of the common work area. */
export function job(plan: RestorePlan, tracee: Tracee, program: Program): Job {
  return { tracee, program, code: plan.area.code, base: plan.area.programs, frame: 0 };
}

/** A job for the task with a pid, at the same time as others: those in one address space have a part each of the work area. */
export function taskJob(
  plan: RestorePlan,
  growth: Growth,
  { pid, program }: { readonly pid: number; readonly program: Program },
): Job {
  const alone = job(plan, growth.tracees.get(pid) as Tracee, program);
  const sharers = plan.tasks.get(pid)?.sharing.memoryOf ?? [pid];
  const room = roomOfEach(plan, sharers.length);
  return { ...alone, base: alone.base + sharers.indexOf(pid) * room };
}

/** Room for each of some programs that run in one address space at the same time. */
export function roomOfEach({ area }: RestorePlan, programs: number): number {
  const room = Math.floor((area.size - (area.programs - area.address)) / Math.max(1, programs));
  return room - (room % 64);
}
