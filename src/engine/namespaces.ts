// The namespaces of a tree that is being restored. Existing ones are entered by the seed. New ones are made together with the first
// task (the root, or the init of a new pid namespace), whose maps of ids the engine writes from outside; time and cgroup
// namespaces need steps of their own. When the root is there, the rooms fill them.

import { closeSync, openSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import { kindOfNamespace, type NamespaceKind } from "../objects/namespaces/kinds.ts";
import type { PlannedNamespace } from "../objects/namespaces/plan.ts";
import { mountFreshProc } from "../objects/namespaces/proc-mount.ts";
import { NAMESPACE_ROOMS } from "../objects/namespaces/registry.ts";
import { namespaceOf } from "../objects/namespaces/ns-file.ts";
import type { NamespacesRestore } from "../objects/namespaces/room.ts";
import {
  enterTimeNamespace,
  makeTimeNamespace,
  offsetsFrom,
  setOffsets,
} from "../objects/namespaces/time.ts";
import { becomeRoot, savedMaps, writeMaps } from "../objects/namespaces/user.ts";
import { AT_FDCWD, F_DUPFD, O_RDONLY } from "../sys/abi/fcntl.ts";
import { CLONE_NEWNS } from "../sys/abi/sched.ts";
import { syscall } from "../sys/ffi.ts";
import { Program, type ProgramResult } from "../tracee/program.ts";
import { runPrograms } from "../tracee/run.ts";
import type { Tracee } from "../tracee/tracee.ts";
import { enteredEarly, enterNamespaces, keepLastPid } from "./grow-nested.ts";
import {
  copyMountNamespace,
  makeUserNamespaces,
  roomyJob,
  startHelper,
  type UserHelpers,
} from "./helpers.ts";
import { copyAbove } from "./inherited.ts";
import { firstPoolFd, job, type EnteredKinds, type Growth } from "./growth.ts";
import type { RestorePlan } from "./plan.ts";
import type { EngineHooks } from "./progress.ts";

/** Kinds that come with clone3; the others are made by the task itself. */
const WITH_CLONE: readonly NamespaceKind[] = ["pid", "net", "ipc", "uts", "mnt", "user"];

/** Flags of clone3 for the first task of a tree. */
export function cloneFlags({ namespaces }: RestorePlan): number {
  const made = WITH_CLONE.filter((kind) => namespaces.made(kind) !== undefined);
  const flags = made.reduce((sum, kind) => sum + kindOfNamespace(kind).flag, 0);
  return needsFreshProc(namespaces) ? flags + CLONE_NEWNS : flags;
}

/** A new pid namespace without a saved mount namespace still needs a /proc of its own. */
function needsFreshProc(namespaces: RestorePlan["namespaces"]): boolean {
  return namespaces.made("pid") !== undefined && namespaces.ofRoot("mnt") === undefined;
}

/** Descriptors of existing namespaces, which the seed inherits. */
export interface ExistingNamespaces {
  readonly namespaces: readonly { readonly namespace: PlannedNamespace; readonly fd: number }[];
  close(): void;
}

/** Opens the namespaces that the plan wants entered. @throws RepriseError BAD_ARGUMENT, SYSCALL */
export function openExisting(plan: RestorePlan): ExistingNamespaces {
  const { namespaces, options } = plan;
  const opened: { namespace: PlannedNamespace; fd: number }[] = [];
  const close = (): void => opened.splice(0).forEach(({ fd }) => closeSync(fd));
  try {
    for (const namespace of namespaces.all) {
      const found = openOne(namespace, options.inheritFds ?? new Map());
      if (found === undefined) continue;
      const fd = copyAbove(found, `the ${namespace.kind} namespace`, firstPoolFd(plan));
      closeSync(found);
      opened.push({ namespace, fd });
    }
  } catch (error) {
    close();
    throw error;
  }
  return { namespaces: opened, close };
}

function openOne(
  { kind, origin }: PlannedNamespace,
  inherited: ReadonlyMap<string, number>,
): number | undefined {
  if (origin.how === "new") return undefined;
  if (origin.how === "external") {
    const fd = inherited.get(origin.key);
    if (fd === undefined) {
      throw new RepriseError(
        "BAD_ARGUMENT",
        `cannot restore the tree: its ${kind} namespace is external, and nobody brings ${origin.key}`,
        {
          hint: `Open the namespace to restore into, and name it: --inherit-fd 'fd[N]:${origin.key}'.`,
        },
      );
    }
    return syscall("fcntl", fd, F_DUPFD, 0);
  }
  const { path } = origin.by;
  try {
    return openSync(path, "r");
  } catch (error) {
    throw new RepriseError(
      "BAD_ARGUMENT",
      `cannot join the ${kind} namespace ${path}: open: ${(error as NodeJS.ErrnoException).code ?? "unknown error"}`,
      { hint: "--join-ns takes a pid or the path of a namespace file.", cause: error },
    );
  }
}

/**
 * Has the seed enter the root's existing namespaces, a user namespace last; those of other tasks are kept for later.
 *
 * @returns where, from `firstPlace` on, the latter's descriptors are in all tasks
 */
export function enterExisting(
  program: Program,
  existing: ExistingNamespaces,
  firstPlace: number,
): Map<PlannedNamespace, number> {
  const kept = new Map<PlannedNamespace, number>();
  const ordered = [...existing.namespaces].sort(
    (a, b) => Number(a.namespace.kind === "user") - Number(b.namespace.kind === "user"),
  );
  for (const { namespace, fd } of ordered) {
    if (namespace.role === "nested") {
      const place = firstPlace + kept.size;
      program.call("dup3", [fd, place, 0], { label: "keep a namespace" });
      kept.set(namespace, place);
    } else {
      program.call("setns", [fd, kindOfNamespace(namespace.kind).flag], {
        label: `enter the ${namespace.kind} namespace`,
        hint: "This needs CAP_SYS_ADMIN in the namespace: run as root.",
      });
    }
    program.call("close", [fd]);
    if (namespace.origin.how === "joined" && namespace.kind === "user") {
      const { uid = 0, gid = 0 } = namespace.origin.by;
      program.call("setresgid", [gid, gid, gid], {
        label: "take a group id of the user namespace",
      });
      program.call("setresuid", [uid, uid, uid], { label: "take a user id of the user namespace" });
    }
  }
  return kept;
}

/** For a first task that the engine makes itself: the maps of a new user namespace come before its program. */
export function mapsFirst({ namespaces, set }: RestorePlan): {
  beforeProgram?: (pid: number) => void;
} {
  const user = namespaces.made("user");
  if (user === undefined) return {};
  const maps = savedMaps(set, user.id);
  return { beforeProgram: (pid) => writeMaps(pid, maps) };
}

/** Makes the first task at home in its new namespaces, before it makes any other. */
export function settleFirst(
  plan: RestorePlan,
  first: Tracee,
  { hasMaps }: { readonly hasMaps: boolean },
): void {
  const { namespaces, set } = plan;
  const run = (program: Program): void => void runPrograms([job(plan, first, program)]);
  const user = namespaces.made("user");
  const time = namespaces.made("time");
  const program = new Program();
  if (user !== undefined) {
    const maps = savedMaps(set, user.id);
    if (!hasMaps) writeMaps(first.tid, maps);
    becomeRoot(program, maps);
  }
  if (time !== undefined) makeTimeNamespace(program);
  if (program.length > 0) run(program);
  if (time !== undefined && set.timens !== undefined) {
    setOffsets(first.tid, offsetsFrom(set.timens));
    const enter = new Program();
    enterTimeNamespace(enter);
    run(enter);
  }
  if (needsFreshProc(namespaces)) mountProc(run);
}

function mountProc(run: (program: Program) => void): void {
  const mounts = new Program();
  mountFreshProc(mounts);
  try {
    run(mounts);
  } catch (error) {
    // A security module may forbid mounts. The tree then lives with the /proc of outside.
    if (!(error instanceof RepriseError && error.code === "REMOTE_CALL")) throw error;
    log.warn(`the restored tree sees the /proc of outside: ${error.message}`);
  }
}

/**
 * Fills the new namespaces when the root task is there: the scripts of "setup-namespaces", the rooms in the order of the registry,
 * the scripts of "post-setup-namespaces".
 */
export function setupNamespaces(plan: RestorePlan, growth: Growth, hooks?: EngineHooks): void {
  openRootNamespaces(plan, growth);
  const saved = plan.namespaces.all.filter(({ id }) => id !== 0);
  if (saved.length === 0) return;
  keepLastPid(plan, growth);
  const rootPid = growth.outerPid(plan.tree.root.pid);
  hooks?.script?.("setup-namespaces", rootPid);
  const users = makeUserNamespaces(plan, growth, growth.tracees.get(plan.tree.root.pid) as Tracee);
  const restore = surroundings(plan, growth, { rootPid, users });
  for (const room of NAMESPACE_ROOMS) {
    const mine = saved.filter(({ kind, origin }) => kind === room.kind && origin.how === "new");
    if (mine.length > 0) room.restore(mine, restore);
  }
  users?.end();
  hooks?.script?.("post-setup-namespaces", rootPid);
}

/** Files of the root's own namespaces, while it still sees a /proc. */
function openRootNamespaces(plan: RestorePlan, growth: Growth): void {
  const kinds = new Set(
    plan.files.filter(({ nsf }) => nsf !== undefined).map((entry) => namespaceOf(entry).kind),
  );
  if (kinds.size === 0) return;
  const root = growth.tracees.get(plan.tree.root.pid) as Tracee;
  const program = new Program();
  const opened = [...kinds].map((kind) => {
    const path = program.string(`/proc/self/ns/${kind}`);
    const label = `open the ${kind} namespace`;
    const fd = program.call("openat", [AT_FDCWD, path, O_RDONLY, 0], { label });
    const kept = program.call("fcntl", [fd, F_DUPFD, firstPoolFd(plan)], { label });
    program.call("close", [fd]);
    return [kind, kept] as const;
  });
  const [result] = runPrograms([job(plan, root, program)]);
  for (const [kind, kept] of opened) growth.rootNamespaceFds.set(kind, result?.value(kept) ?? -1);
}

/** The descriptor of a namespace by its number in the images, where all tasks have one. */
export function namespaceFd(
  { set, namespaces }: RestorePlan,
  { namespaceFds, rootNamespaceFds }: Growth,
  { kind, id }: { readonly kind: NamespaceKind; readonly id: number },
): number | undefined {
  const planned = namespaces.byId(kind, id);
  if (planned?.role === "nested") return namespaceFds.get(planned);
  const ofRoot = set.tasks.get(set.rootPid)?.live?.ids[kindOfNamespace(kind).field];
  if (id !== ofRoot) return undefined;
  return (
    rootNamespaceFds.get(kind) ?? (planned === undefined ? undefined : namespaceFds.get(planned))
  );
}

function surroundings(
  plan: RestorePlan,
  growth: Growth,
  { rootPid, users }: { readonly rootPid: number; readonly users: UserHelpers | undefined },
): NamespacesRestore {
  const root = growth.tracees.get(plan.tree.root.pid) as Tracee;
  const run = (program: Program): ProgramResult => {
    const { job: long, done } = roomyJob(plan, root, program);
    const [result] = runPrograms([long]);
    done();
    return result as ProgramResult;
  };
  return {
    set: plan.set,
    options: plan.options,
    plan: plan.namespaces,
    rootPid,
    mounts: growth.mounts,
    firstFreeFd: firstPoolFd(plan),
    keepMounts: (places) => {
      growth.mountPlaces = places;
      growth.ends.push({ release: () => places.close(), failed: () => places.close() });
    },
    run,
    runFor: ({ owner }, program) =>
      owner === undefined || users === undefined ? run(program) : users.of(owner).run(program),
    runInHelper: ({ id, kind, owner }, use) => {
      const maker = owner === undefined || users === undefined ? root : users.of(owner).tracee;
      const what = `the maker of ${kind} namespace ${id}`;
      const helper = startHelper(plan, growth, maker, { what });
      use({ pid: helper.tracee.tid, run: (program) => helper.run(program) });
      helper.end();
    },
    copyMounts: (from) => copyMountNamespace(plan, growth, from),
    keepLateMounts: (late) => void growth.lateMounts.push(...late),
    descriptorOf: (kind, id) => {
      const planned = plan.namespaces.byId(kind, id);
      return planned === undefined ? undefined : growth.namespaceFds.get(planned);
    },
    runInChild: (program) => growth.runInChild(program),
    keep: (program, fd, label) => {
      const kept = program.call("fcntl", [fd, F_DUPFD, firstPoolFd(plan)], { label });
      program.call("close", [fd]);
      return kept;
    },
    setDescriptor: (namespace, fd) => void growth.namespaceFds.set(namespace, fd),
    inherited: (key) => plan.options.inheritFds?.get(key),
    atEnd: (steps) => void growth.ends.push(steps),
  };
}

/**
 * Adds the calls by which a task enters the namespaces that it does not share with the root: its mount namespace, which changes its
 * root and current directory, its user namespace, from which it could enter no others, or all the rest.
 */
export function enterNested(
  program: Program,
  plan: RestorePlan,
  growth: Growth,
  { pid, which }: { readonly pid: number; readonly which: EnteredKinds },
): void {
  const ids = plan.tasks.get(pid)?.ids;
  if (growth.entered.get(pid)?.has(which) === true) return;
  const wanted = plan.namespaces.all.filter(
    ({ kind, id, role }) =>
      role === "nested" &&
      kind !== "pid" &&
      ids?.[kindOfNamespace(kind).field] === id &&
      which === (kind === "mnt" ? "mounts" : kind === "user" ? "user" : "others"),
  );
  if (wanted.length === 0) return;
  const entered = enteredEarly(plan, pid);
  const namespaces = wanted.filter((namespace) => !entered.has(namespace));
  enterNamespaces(program, plan, growth, { pid, namespaces });
}
