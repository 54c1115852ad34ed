// What the kernel tells of a stopped thread from outside. It takes some ten calls for each of thousands of threads, so one program of the
// engine's own makes them all.

import { ResidentProgram } from "../../tracee/local.ts";
import { Program, type Load } from "../../tracee/program.ts";
import { lookForLosses } from "./losses.ts";
import { lookAtScheduling, type Scheduling } from "./scheduling.ts";
import { lookForPending } from "./signals.ts";
import type { FrozenTask, FrozenThread } from "./task.ts";
import { lookAtRobustList, type RobustList } from "./thread-registrations.ts";

/** What is seen of a thread. */
export interface ThreadView {
  readonly robustList: RobustList;
  readonly scheduling: Scheduling;
  /** Whether signals are pending for it alone. */
  readonly hasPending: boolean;
}

export class ThreadLook implements Disposable {
  readonly #program: ResidentProgram;
  readonly #tid: Load["from"];
  readonly #robustList: ReturnType<typeof lookAtRobustList>;
  readonly #scheduling: ReturnType<typeof lookAtScheduling>;
  readonly #hasPending: ReturnType<typeof lookForPending>;
  readonly #losses: ReturnType<typeof lookForLosses>;

  constructor() {
    const program = new Program();
    this.#tid = program.data(Buffer.alloc(4));
    const tid: Load = { kind: "load", from: this.#tid, width: 4 };
    this.#robustList = lookAtRobustList(program, tid);
    this.#scheduling = lookAtScheduling(program, tid);
    this.#hasPending = lookForPending(program, tid);
    this.#losses = lookForLosses(program, tid);
    this.#program = new ResidentProgram(program);
  }

  /**
   * Looks at a thread, and tells what of it no image will hold.
   *
   * @throws RepriseError UNSUPPORTED, SYSCALL
   */
  at(
    thread: FrozenThread,
    of: {
      readonly task: FrozenTask;
      readonly timerSlack: bigint;
      readonly parentDeathSignal: number;
    },
  ): ThreadView {
    const { tid } = thread;
    const answers = this.#program;
    answers.run({ at: this.#tid, value: tid });
    this.#losses(answers, { task: of.task, thread, parentDeathSignal: of.parentDeathSignal });
    return {
      robustList: this.#robustList(answers),
      scheduling: this.#scheduling(answers, { tid, timerSlack: of.timerSlack }),
      hasPending: this.#hasPending(answers),
    };
  }

  [Symbol.dispose](): void {
    this.#program[Symbol.dispose]();
  }
}
