// Helpers of a restore: children of tasks that share the descriptors of who made them, do what that one could not do or could not take
// back, and end before the tree is let go.

import { assert, RepriseError } from "../errors.ts";
import { readChildrenIfAlive } from "../proc/children.ts";
import { readStatus, readStatusIfAlive, type TaskStatus } from "../proc/status.ts";
import { AT_FDCWD, F_DUPFD, O_CLOEXEC, O_DIRECTORY, O_PATH, O_RDONLY } from "../sys/abi/fcntl.ts";
import { MAP_ANONYMOUS, MAP_PRIVATE, PAGE_SIZE, PROT_READ, PROT_WRITE } from "../sys/abi/mman.ts";
import {
  CLONE_FILES,
  CLONE_NEWNS,
  CLONE_NEWUSER,
  PR_SET_DUMPABLE,
  WALL,
} from "../sys/abi/sched.ts";
import type { PlannedNamespace } from "../objects/namespaces/plan.ts";
import { openOwn } from "../objects/namespaces/nested.ts";
import { addMaps, becomeRoot, savedMaps, writeMaps } from "../objects/namespaces/user.ts";
import { Program, type ProgramResult } from "../tracee/program.ts";
import { runPrograms, type Job } from "../tracee/run.ts";
import { endProcess } from "../tracee/seed.ts";
import { Tracee } from "../tracee/tracee.ts";
import { addClone } from "../tracee/clone.ts";
import { firstPoolFd, job, roomOfEach, type Growth } from "./growth.ts";
import type { RestorePlan } from "./plan.ts";

/** A child for a while. */
export interface Helper {
  readonly tracee: Tracee;
  run(program: Program): ProgramResult;
  /** Ends it, and has its maker reap it. */
  end(): void;
}

export interface HelperOptions {
  readonly what: string;
  /** Adds what its maker does before and after it is made. */
  readonly around?: { before(program: Program): void; after(program: Program): void };
  /** The number that it gets; without, the next one. */
  readonly pid?: number;
}

/** Has a task make a helper. */
export function startHelper(
  plan: RestorePlan,
  growth: Growth,
  maker: Tracee,
  { what, around, pid: wanted }: HelperOptions,
): Helper {
  const program = new Program();
  around?.before(program);
  const made = addClone(program, {
    flags: CLONE_FILES,
    what,
    ...(wanted === undefined ? {} : { pid: wanted }),
  });
  around?.after(program);
  const pid = runIn(plan, maker, program).value(made);
  const tracee = adoptChild(maker, pid);
  growth.helpers.add(tracee.tid);
  return {
    tracee,
    run: (task) => runIn(plan, tracee, task),
    end: () => {
      if (!growth.helpers.delete(tracee.tid)) return;
      endProcess(tracee.tid);
      const reaping = new Program();
      reaping.call("wait4", [pid, 0, WALL, 0], { label: `reap ${what}` });
      runIn(plan, maker, reaping);
    },
  };
}

/** A task's program on its own. */
export function runIn(
  plan: RestorePlan,
  tracee: Tracee,
  program: Program,
  options: { readonly justBefore?: () => void } = {},
): ProgramResult {
  const [result] = runPrograms([{ ...job(plan, tracee, program), ...options }]);
  if (result === undefined) throw new RepriseError("INTERNAL", "internal error: no result");
  return result;
}

/**
 * A job for a task that has no memory yet but the work area: a program of any length, as what is in the pipes of the whole tree, or
 * tens of thousands of mounts make it. `done` gives back the room, when the job has been run.
 */
export function roomyJob(
  plan: RestorePlan,
  tracee: Tracee,
  program: Program,
): { readonly job: Job; readonly done: () => void } {
  const usual = job(plan, tracee, program);
  const { address, size, programs } = plan.area;
  if (program.size <= address + size - programs) return { job: usual, done: () => {} };
  const { bases, clear } = makeRooms([usual]);
  return { job: { ...usual, base: bases[0] ?? usual.base }, done: clear };
}

/** Runs programs of any length, one in each of some threads, at the same time. */
export function runRoomy(
  plan: RestorePlan,
  growth: Growth,
  programs: readonly { readonly tid: number; readonly program: Program }[],
): void {
  const memoryOf = new Map(
    [...plan.tasks.values()].flatMap(({ threads, sharing }) =>
      threads.map(({ tid }) => [tid, sharing.memoryOf[0]] as const),
    ),
  );
  // Threads and tasks in one address space have a part each of the work area.
  const counts = new Map<number | undefined, number>();
  const placed = programs.map(({ tid, program }) => {
    const memory = memoryOf.get(tid);
    const index = counts.get(memory) ?? 0;
    counts.set(memory, index + 1);
    return { tid, program, memory, index };
  });
  const jobs = placed.map(({ tid, program, memory, index }) => {
    const tracee = growth.tracees.get(tid);
    assert(tracee !== undefined, `there is no thread ${tid}`);
    const room = roomOfEach(plan, counts.get(memory) ?? 1);
    const small = job(plan, tracee, program);
    return { room, job: { ...small, base: small.base + index * room } };
  });
  const long = jobs.filter(({ room, job: { program } }) => program.size > room);
  const rooms = makeRooms(long.map((one) => one.job));
  runPrograms(
    jobs.map((one) => ({ ...one.job, base: rooms.bases[long.indexOf(one)] ?? one.job.base })),
  );
  rooms.clear();
}

/** Makes room in the memory of threads, outside of the work area, for programs that are too long for that. */
function makeRooms(jobs: readonly Job[]): {
  readonly bases: readonly number[];
  readonly clear: () => void;
} {
  const label = "make room for a long program";
  const lengths = jobs.map(({ program }) => Math.ceil(program.size / PAGE_SIZE) * PAGE_SIZE);
  const flags = MAP_PRIVATE | MAP_ANONYMOUS;
  const made = jobs.map((one, index) => {
    const program = new Program();
    const args = [0, lengths[index] ?? 0, PROT_READ | PROT_WRITE, flags, -1, 0];
    return { job: { ...one, program }, base: program.call("mmap", args, { label }) };
  });
  const results = runPrograms(made.map((one) => one.job));
  const bases = made.map(({ base }, index) => results[index]?.value(base) ?? 0);
  const clear = (): void => {
    runPrograms(
      jobs.map((one, index) => {
        const program = new Program();
        program.call("munmap", [bases[index] ?? 0, lengths[index] ?? 0], { label });
        return { ...one, program };
      }),
    );
  };
  return { bases, clear };
}

/** Waits for the first stop of a child that a task has made, by the number that the task has for it. */
function adoptChild(maker: Tracee, pid: number): Tracee {
  const outer = findChild(maker, pid)?.outer;
  const tracee = outer === undefined ? undefined : new Tracee(outer, outer, maker.counters);
  if (tracee?.waitInterrupted() !== undefined) return tracee;
  throw new RepriseError(
    "TASK_DIED",
    `cannot restore pid ${pid}: it ended as soon as it was made`,
    { pid },
  );
}

/** A child that we trace, by the number that its maker has for it; by CLONE_PARENT it is a child of the maker's parent. */
export function findChild(
  maker: Tracee,
  pid: number,
  parent: Tracee = maker,
): { readonly outer: number; readonly status: TaskStatus } | undefined {
  const depth = readStatus(maker.tid).nsPid.length - 1;
  for (const outer of readChildrenIfAlive(parent.tid) ?? []) {
    const status = readStatusIfAlive(outer);
    if (status?.tracerPid === process.pid && status.nsPid[depth] === pid) return { outer, status };
  }
  return undefined;
}

/** Helpers that are roots of the tree's further user namespaces, which they have made. */
export interface UserHelpers {
  /** The one of a user namespace. */
  of(id: number): Helper;
  end(): void;
}

/** Makes the user namespaces of tasks that do not share the root task's, outer ones first. */
export function makeUserNamespaces(
  plan: RestorePlan,
  growth: Growth,
  root: Tracee,
): UserHelpers | undefined {
  const left = plan.namespaces.all.filter(({ kind, role }) => kind === "user" && role === "nested");
  if (left.length === 0) return undefined;
  const helpers = new Map<number, Helper>();
  while (left.length > 0) {
    const at = left.findIndex(({ parent }) => parent === undefined || helpers.has(parent));
    const [namespace] = left.splice(at < 0 ? 0 : at, 1) as [PlannedNamespace];
    if (at < 0)
      throw new RepriseError(
        "BAD_IMAGE",
        `cannot restore: user namespace ${namespace.id} is in none of the tree's`,
      );
    const maker = helpers.get(namespace.parent ?? -1)?.tracee ?? root;
    helpers.set(namespace.id, makeUser(plan, growth, { namespace, maker }));
  }
  const all = [...helpers.values()].toReversed();
  return {
    of: (id) => {
      const found = helpers.get(id);
      if (found === undefined)
        throw new RepriseError(
          "BAD_IMAGE",
          `cannot restore: user namespace ${id} is none of the tree's`,
        );
      return found;
    },
    end: () => all.forEach((helper) => helper.end()),
  };
}

const LINK_SIZE = 64;

function makeUser(
  plan: RestorePlan,
  growth: Growth,
  { namespace, maker }: { namespace: PlannedNamespace; maker: Tracee },
): Helper {
  const { id, ownerUid = 0 } = namespace;
  const what = `the maker of user namespace ${id}`;
  const helper = startHelper(plan, growth, maker, { what });
  const making = new Program();
  // The namespace belongs to who makes it, besides the root of the one around it.
  if (ownerUid !== 0)
    making.call("setresuid", [-1, ownerUid, -1], {
      label: `make user namespace ${id} as its owner`,
    });
  making.call("unshare", [CLONE_NEWUSER], {
    label: `make user namespace ${id}`,
    hint: "The limit on namespaces (/proc/sys/user) may be reached.",
  });
  // For its maker, whose files in /proc it may have to write.
  making.call("prctl", [PR_SET_DUMPABLE, 1, 0, 0, 0], { label: "be dumpable" });
  const link = making.output(LINK_SIZE);
  const self = making.string("/proc/thread-self");
  const length = making.call("readlinkat", [AT_FDCWD, self, link, LINK_SIZE], {
    label: "read the own number in /proc",
  });
  const made = helper.run(making);
  const maps = savedMaps(plan.set, id);
  if (namespace.parent === undefined) writeMaps(helper.tracee.tid, maps);
  else {
    // Only who is in the namespace around may.
    const number = made.bytes(link, made.value(length)).toString("latin1").split("/")[0] ?? "";
    const writing = new Program();
    addMaps(writing, `/proc/${number}`, maps);
    runIn(plan, maker, writing);
  }
  const settling = new Program();
  becomeRoot(settling, maps);
  const opened = openOwn(settling, "user");
  const kept = settling.call("fcntl", [opened, F_DUPFD, firstPoolFd(plan)], {
    label: `keep user namespace ${id}`,
  });
  settling.call("close", [opened]);
  growth.namespaceFds.set(namespace, helper.run(settling).value(kept));
  return helper;
}

/**
 * A mount namespace that belongs to another user namespace, as a copy of one that the root task has made: mounts that were there when it was
 * made are locked in it (mount_namespaces(7)). Descriptors of it and its root in the root task.
 */
export function copyMountNamespace(
  plan: RestorePlan,
  growth: Growth,
  from: { readonly fd: number; readonly user: number; readonly id: number },
): { readonly namespace: number; readonly root: number } {
  const root = growth.tracees.get(plan.tree.root.pid) as Tracee;
  const label = `make mount namespace ${from.id}`;
  const helper = startHelper(plan, growth, root, {
    what: `the maker of mount namespace ${from.id}`,
  });
  const program = new Program();
  // Its own /proc may not be there any more in the mounts that it comes to.
  const links = program.call(
    "openat",
    [AT_FDCWD, program.string("/proc/thread-self/ns"), O_PATH | O_DIRECTORY | O_CLOEXEC, 0],
    { label },
  );
  program.call("setns", [from.fd, CLONE_NEWNS], { label });
  program.call("setns", [from.user, CLONE_NEWUSER], { label });
  program.call("unshare", [CLONE_NEWNS], { label });
  const made = program.call("openat", [links, program.string("mnt"), O_RDONLY | O_CLOEXEC, 0], {
    label,
  });
  const top = program.call(
    "openat",
    [AT_FDCWD, program.string("/"), O_PATH | O_DIRECTORY | O_CLOEXEC, 0],
    { label },
  );
  const [namespace, rootFd] = [made, top].map((fd) => {
    const kept = program.call("fcntl", [fd, F_DUPFD, firstPoolFd(plan)], { label });
    program.call("close", [fd]);
    return kept;
  });
  program.call("close", [links]);
  const result = helper.run(program);
  helper.end();
  return {
    namespace: namespace === undefined ? -1 : result.value(namespace),
    root: rootFd === undefined ? -1 : result.value(rootFd),
  };
}
