// What a process and its threads are asked from inside, by one program a thread.

import { constantMessage } from "../../images/codec.ts";
import {
  type CredsEntry,
  type ReprisePrctl,
  type RepriseSemUndo,
  type RepriseMemoryPolicy,
  type SaEntry,
  type TaskTimersEntry,
  type ThreadSasEntry,
  type VmaEntry,
} from "../../images/schema/messages.generated.ts";
import type { BriefStatus } from "../../proc/status.ts";
import { Program, type ProgramResult } from "../../tracee/program.ts";
import type { Probe } from "../probe.ts";
import * as attributes from "./attributes.ts";
import { hasSameCredentials, probeCreds } from "./creds.ts";
import { probeAlternateStack, probeSignalActions } from "./signals.ts";
import { tellKeyrings, tellThreadKeyring } from "./keyrings.ts";
import type { LandlockWatch } from "./landlock.ts";
import { probeAreaPolicies, probeThreadPolicy } from "../memory/numa.ts";
import { probeFutureLocks } from "../memory/future-locks.ts";
import { tellNamespaceSettings } from "../namespaces/settings.ts";
import { probeCpuPermissions } from "./cpu-permissions.ts";
import { probeLdt } from "./ldt.ts";
import { hasLongQueue, probeLongQueue, type TakenSignals } from "./long-queues.ts";
import { probeSettings } from "./prctl-settings.ts";
import { isFirst, type FrozenTask, type FrozenThread } from "./task.ts";
import { probeClearTidAddress } from "./thread-registrations.ts";
import { probeTimers } from "./timers.ts";

/** What a process told from inside. */
export interface ProcessState {
  readonly sigactions: readonly SaEntry[];
  readonly timers: TaskTimersEntry;
  readonly attributes: attributes.ProcessAttributes;
  /** Policies of NUMA memory, by the addresses of areas. */
  readonly areaPolicies: ReadonlyMap<number, RepriseMemoryPolicy>;
  /** MCL_ flags for memory that is mapped later. */
  readonly futureLocks: number;
  /** Components of registers that it has asked for. */
  readonly cpuPermissions: bigint;
  /** What its end undoes of its operations on semaphores, where that was looked for. */
  readonly semUndo?: readonly RepriseSemUndo[];
  /** Whether it has a local descriptor table; then that table, once it has been read. */
  readonly hasLdt: boolean;
  readonly ldt?: Uint8Array;
}

/** What a thread told from inside. */
export interface ThreadState {
  readonly creds: CredsEntry;
  readonly sas: ThreadSasEntry;
  readonly attributes: attributes.ThreadAttributes;
  /** Word that is cleared when the thread ends; 0 for none. */
  readonly clearTidAddress: bigint;
  readonly settings: readonly ReprisePrctl[];
  readonly memoryPolicy: RepriseMemoryPolicy | undefined;
  readonly personality: number;
  /** Signals of a long queue, of its own or as the leader of its process's. */
  readonly taken: TakenSignals | undefined;
  /** Nanoseconds that its wait still lasts, if only the kernel knows. */
  readonly restOfWait?: bigint;
}

/** Adds the questions for the whole process to its leader's program. */
export function probeProcess(
  program: Program,
  task: FrozenTask,
  options: {
    readonly innerTid: (tid: number) => number | undefined;
    /** None when the memory is another task's, too. */
    readonly areas: readonly VmaEntry[];
  },
): Probe<ProcessState> {
  const sigactions = probeSignalActions(program);
  const timers = probeTimers(program, task.pid, { ...options, threads: task.threads.length });
  const attributesOf = attributes.probeProcessAttributes(program);
  const areaPolicies = probeAreaPolicies(program, options.areas);
  const keyrings = tellKeyrings(program, { pid: task.innerPid });
  const settings = tellNamespaceSettings(program, task);
  const futureLocks = probeFutureLocks(program);
  const ldt = probeLdt(program);
  const cpuPermissions = probeCpuPermissions(program);
  return (result) => {
    keyrings(result);
    settings(result);
    return {
      areaPolicies: areaPolicies(result),
      futureLocks: futureLocks(result),
      hasLdt: ldt(result),
      cpuPermissions: cpuPermissions(result),
      sigactions: sigactions(result),
      timers: timers(result),
      attributes: attributesOf(result),
    };
  };
}

/** A program that asks threads, and what reads its answers for one of them. */
export interface ThreadQuestions {
  readonly program: Program;
  readonly state: (result: ProgramResult, thread: FrozenThread) => ThreadState;
}

/** What threads are asked: most threads of a process the same, in one and the same program. */
export class ThreadInquiry {
  readonly #task: FrozenTask;
  readonly #landlock: LandlockWatch;
  /** Those of threads that are not leaders, by what decides on the calls. */
  readonly #known = new Map<string, ThreadQuestions>();

  constructor(task: FrozenTask, landlock: LandlockWatch) {
    this.#task = task;
    this.#landlock = landlock;
  }

  /** The questions for a thread; those for the leader are added to its process's. */
  of(thread: FrozenThread, leaders?: Program): ThreadQuestions {
    const target = this.#landlock.targetOf(thread);
    if (leaders !== undefined || hasLongQueue(this.#task, thread))
      return this.#ask(thread, { target, program: leaders ?? new Program() });
    const key = `${thread.status.groups.length} ${target}`;
    const known = this.#known.get(key) ?? this.#ask(thread, { target, program: new Program() });
    this.#known.set(key, known);
    return known;
  }

  #ask(
    like: FrozenThread,
    { target, program }: { readonly target: number | undefined; readonly program: Program },
  ): ThreadQuestions {
    // Who stands for a first thread that has ended is asked for what is the process's.
    const isLeader = like.tid === this.#task.pid;
    // What each thread answers differently comes first.
    const sas = probeAlternateStack(program);
    const clearTidAddress = probeClearTidAddress(program);
    const domain = this.#landlock.probe(program, target);
    const mark = program.mark;
    const creds = probeCreds(program, like.status);
    const attributesOf = attributes.probeThreadAttributes(program);
    const settings = probeSettings(program, { isLeader });
    const memoryPolicy = probeThreadPolicy(program);
    const personality = attributes.probePersonality(program);
    const keyring = isFirst(this.#task, like) ? undefined : tellThreadKeyring(program);
    const taken = probeLongQueue(program, this.#task, like);
    const answers = new Map<string, CommonState[]>();
    const common = (result: ProgramResult, { status }: FrozenThread): CommonState => {
      const answer = result.since(mark);
      const known = answers.get(answer) ?? [];
      const same = known.find((other) => hasSameCredentials(other.status, status));
      if (same !== undefined) return same;
      const state = {
        status,
        creds: constantMessage(creds(result, status)),
        attributes: attributesOf(result),
        settings: settings(result),
        memoryPolicy: memoryPolicy(result),
        personality: personality(result),
      };
      known.push(state);
      answers.set(answer, known);
      return state;
    };
    const state = (result: ProgramResult, thread: FrozenThread): ThreadState => {
      domain(result, thread);
      keyring?.(result, thread.innerTid);
      return {
        ...common(result, thread),
        sas: sas(result),
        clearTidAddress: clearTidAddress(result),
        taken: taken(result),
      };
    };
    return { program, state };
  }
}

/** What most threads of a process have in common: it is read from the answers once. */
type CommonState = Omit<ThreadState, "sas" | "clearTidAddress" | "taken"> & {
  /** The status of the first thread that answered so. */
  readonly status: BriefStatus;
};
