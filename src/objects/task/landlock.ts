// Landlock (landlock(7)): a thread may have put itself into a domain, which no interface of the kernel shows and nothing can make
// anew, so that it is told as a loss. What a domain of any kind forbids is to look into processes outside of it
// (security/landlock/task.c, hook_ptrace_access_check): so the thread asks by kcmp(2), which changes nothing, about a process that it
// could look into but for a domain. Where it has the right to trace all that is the engine; else a helper that has its ids, its
// namespaces, and no capabilities.
//
// Asked are those who can have entered a domain: with no_new_privs, or with CAP_SYS_ADMIN. Who entered one with CAP_SYS_ADMIN and has
// given it up since is not found. Nor are threads asked that another security module labels otherwise than us: their
// label may be the reason of a refusal.

import { closeSync, openSync } from "node:fs";
import { log } from "../../log.ts";
import { readNamespace } from "../../proc/ns.ts";
import { undefinedIfGone } from "../../proc/procfs.ts";
import { readStatus, type BriefStatus, type TaskStatus } from "../../proc/status.ts";
import { LANDLOCK_CREATE_RULESET_VERSION } from "../../sys/abi/landlock.ts";
import {
  CAP_SYS_ADMIN,
  CAP_SYS_PTRACE,
  CLONE_NEWUSER,
  KCMP_FILES,
  PR_SET_DUMPABLE,
  SECBIT_NO_SETUID_FIXUP,
} from "../../sys/abi/sched.ts";
import { F_DUPFD } from "../../sys/abi/fcntl.ts";
import { EPERM } from "../../sys/errno.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { Program, type ProgramResult } from "../../tracee/program.ts";
import { runPrograms } from "../../tracee/run.ts";
import { endProcess, startSeed, startSeedInPids, workAreaAt } from "../../tracee/seed.ts";
import type { Tracee } from "../../tracee/tracee.ts";
import { setCapabilities, setSecurebits } from "./creds.ts";
import { readLabels } from "./lsm.ts";
import type { FrozenThread } from "./task.ts";

/** Whom the threads of a dump ask about. */
export class LandlockWatch implements Disposable {
  readonly #engine = engineTraits();
  /** By namespaces and ids. */
  readonly #helpers = new Map<string, Helper | undefined>();
  readonly #told = new Set<number>();
  /** Of processes: what their threads have in common. */
  #places = new Map<number, Place>();

  /** Makes the helpers that running processes will probably need: it takes long to make one, for a tree that stands still. */
  prepare(running: readonly BriefStatus[]): void {
    if (!this.#engine.isWatching) return;
    // One that ends meanwhile needs none.
    for (const status of running) undefinedIfGone(() => this.#targetOf(status));
    // They may go to other namespaces.
    this.#places = new Map();
  }

  /** The numbers that helpers have in a pid namespace, by its inode. */
  helpersIn(pidNamespace: number | undefined): Set<number> {
    const there = [...this.#helpers.values()].filter(
      (helper) => helper?.place.pid === pidNamespace,
    );
    return new Set(there.flatMap((helper) => helper?.innerPid ?? []));
  }

  /** Whom a thread is to be asked about, by the number that it has for that process; undefined when it need not be asked. */
  targetOf({ status }: FrozenThread): number | undefined {
    return this.#engine.isWatching ? this.#targetOf(status) : undefined;
  }

  /** Adds the question to the program of threads with this target; tells of a domain, once a process. */
  probe(
    program: Program,
    target: number | undefined,
  ): (result: ProgramResult, thread: FrozenThread) => void {
    if (target === undefined) return () => undefined;
    const self = program.call("gettid", []);
    const asked = program.call("kcmp", [self, target, KCMP_FILES, 0, 0], {
      label: "look into a process outside",
      mayFail: true,
    });
    return (result, thread) => {
      const { tgid, name } = thread.status;
      if (result.value(asked) !== -EPERM || this.#told.has(tgid)) return;
      this.#told.add(tgid);
      log.loss(
        `thread ${thread.innerTid} (${name}) is in a Landlock domain, which cannot be read: it will come back without it`,
      );
    };
  }

  [Symbol.dispose](): void {
    for (const helper of this.#helpers.values()) if (helper !== undefined) endProcess(helper.pid);
    this.#helpers.clear();
  }

  /** A process that the thread may look into, by the number that it has for it. */
  #targetOf(status: BriefStatus): number | undefined {
    if (!status.noNewPrivs && !has(status.capEff, CAP_SYS_ADMIN)) return undefined;
    if (!this.#isLabelledAsWeAre(status)) return undefined;
    const place = this.#places.get(status.tgid) ?? placeOf(status.pid);
    this.#places.set(status.tgid, place);
    if (place.key === this.#engine.place.key && this.#mayLookAtUs(status))
      return this.#engine.status.nsPid.at(-1);
    const key = `${place.key}:${status.uid.real}:${status.gid.real}`;
    if (!this.#helpers.has(key)) this.#helpers.set(key, this.#startHelper(status, place));
    return this.#helpers.get(key)?.innerPid;
  }

  #isLabelledAsWeAre({ tgid, pid }: BriefStatus): boolean {
    return readLabels({ pid: tgid, tid: pid }).lsm_profile === this.#engine.label;
  }

  /** ptrace(2), "Ptrace access mode checking": by right, or as one of the same ids and no fewer capabilities. */
  #mayLookAtUs(status: BriefStatus): boolean {
    if (has(status.capEff, CAP_SYS_PTRACE)) return true;
    const isSame = (kind: "uid" | "gid"): boolean => {
      const { real, effective, saved } = this.#engine.status[kind];
      return [real, effective, saved].every((id) => id === status[kind].real);
    };
    return isSame("uid") && isSame("gid") && (this.#engine.status.capPrm & ~status.capPrm) === 0n;
  }

  /** Undefined when there can be none: then it is not known. */
  #startHelper(status: BriefStatus, place: Place): Helper | undefined {
    try {
      const { tid: pid } = startHelper(status, { place, own: this.#engine.place });
      return { pid, place, innerPid: readStatus(pid).nsPid.at(-1) };
    } catch (error) {
      log.debug(
        `whether pid ${status.tgid} is in a Landlock domain is not known: ${String(error)}`,
      );
      return undefined;
    }
  }
}

/** A process that threads are asked about. */
interface Helper {
  readonly pid: number;
  readonly place: Place;
  /** Its number in its own pid namespace. */
  readonly innerPid: number | undefined;
}

/** What threads are compared with. */
interface EngineTraits {
  /** Whether there is anything to look for. */
  readonly isWatching: boolean;
  readonly status: TaskStatus;
  readonly place: Place;
  readonly label: string | undefined;
}

/** They stay the same as long as the engine runs. */
function engineTraits(): EngineTraits {
  traits ??= {
    isWatching: isActive(),
    status: readStatus(process.pid),
    place: placeOf(process.pid),
    label: readLabels({ pid: process.pid, tid: process.pid }).lsm_profile,
  };
  return traits;
}

let traits: EngineTraits | undefined;

/** Whether the kernel has Landlock, and has it switched on. */
function isActive(): boolean {
  return trySyscall("landlock_create_ruleset", 0, 0, LANDLOCK_CREATE_RULESET_VERSION) > 0;
}

function has(set: bigint, capability: number): boolean {
  return (set & (1n << BigInt(capability))) !== 0n;
}

/** The namespaces that matter to who may look at whom. */
interface Place {
  readonly key: string;
  readonly user: number | undefined;
  readonly pid: number | undefined;
}

function placeOf(pid: number): Place {
  const [user, pids] = [readNamespace(pid, "user"), readNamespace(pid, "pid")];
  return { key: `${user}:${pids}`, user, pid: pids };
}

/** Where nothing of a fresh process is. */
const HELPER_AREA = { address: 0x2000_0000_0000, size: 1024 * 1024 };

/** A process with the thread's ids and namespaces that anybody may look into who has them too. */
function startHelper(
  { tgid, uid, gid }: BriefStatus,
  { place, own }: { readonly place: Place; readonly own: Place },
): Tracee {
  const area = workAreaAt(HELPER_AREA.address, HELPER_AREA.size);
  const counters = { stops: 0, remoteCalls: 0 };
  const opened: number[] = [];
  // The helper inherits it.
  const namespace = (kind: "pid" | "user"): number => {
    const fd = openSync(`/proc/${tgid}/ns/${kind}`, "r");
    opened.push(fd, syscall("fcntl", fd, F_DUPFD, 3));
    return opened.at(-1) as number;
  };
  try {
    const users = place.user === own.user ? undefined : namespace("user");
    const seed =
      place.pid === own.pid
        ? startSeed(area, counters)
        : startSeedInPids(area, counters, namespace("pid"));
    try {
      const program = new Program();
      setSecurebits(program, SECBIT_NO_SETUID_FIXUP);
      program.call("setresgid", [gid.real, gid.real, gid.real]);
      program.call("setresuid", [uid.real, uid.real, uid.real]);
      if (users !== undefined) program.call("setns", [users, CLONE_NEWUSER]);
      setCapabilities(program, { effective: 0n, permitted: 0n, inheritable: 0n });
      program.call("prctl", [PR_SET_DUMPABLE, 1, 0, 0, 0]);
      runPrograms([{ tracee: seed, program, code: area.code, base: area.programs, frame: 0 }]);
      return seed;
    } catch (error) {
      endProcess(seed.tid);
      throw error;
    }
  } finally {
    opened.forEach((fd) => closeSync(fd));
  }
}
