// What the kernel tells of a stopped thread from outside. It takes some ten calls for each of thousands of threads, so one program of the
// engine's own makes them all.

import { ResidentProgram } from "../../tracee/local.ts";
import { Program, type Answers, type Argument, type Load } from "../../tracee/program.ts";
import { Sweep, type Field } from "../../tracee/sweep.ts";
import { lookForLosses, mayUsePorts } from "./losses.ts";
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

/** What a thread has told itself, and whose it is. */
interface Known {
  readonly task: FrozenTask;
  readonly timerSlack: bigint;
  readonly parentDeathSignal: number;
}

export interface ThreadLook {
  /**
   * Looks at a thread, and tells what of it no image will hold.
   *
   * @throws RepriseError UNSUPPORTED, SYSCALL
   */
  at(thread: FrozenThread, known: Known): ThreadView;
}

interface Questions {
  readonly robustList: ReturnType<typeof lookAtRobustList>;
  readonly scheduling: ReturnType<typeof lookAtScheduling>;
  readonly hasPending: ReturnType<typeof lookForPending>;
  readonly losses: ReturnType<typeof lookForLosses>;
}

/** `then` is called before what most threads have in common. */
function questions(program: Program, tid: Argument, then?: () => void): Questions {
  const robustList = lookAtRobustList(program, tid);
  const hasPending = lookForPending(program, tid);
  then?.();
  const scheduling = lookAtScheduling(program, tid);
  return { robustList, scheduling, hasPending, losses: lookForLosses(program, tid) };
}

function view(
  { robustList, scheduling, hasPending, losses }: Questions,
  answers: Answers,
  { thread, known }: { readonly thread: FrozenThread; readonly known: Known },
): ThreadView & { readonly hasLosses: boolean } {
  const { task, timerSlack, parentDeathSignal } = known;
  return {
    hasLosses: losses(answers, { task, thread, parentDeathSignal }),
    robustList: robustList(answers),
    scheduling: scheduling(answers, { tid: thread.tid, timerSlack }),
    hasPending: hasPending(answers),
  };
}

/** Looks at one thread after the other, when it is asked. */
export class EachLook implements ThreadLook, Disposable {
  readonly #program: ResidentProgram;
  readonly #tid: Load["from"];
  readonly #questions: Questions;

  constructor() {
    const program = new Program();
    this.#tid = program.data(Buffer.alloc(4));
    this.#questions = questions(program, { kind: "load", from: this.#tid, width: 4 });
    this.#program = new ResidentProgram(program);
  }

  at(thread: FrozenThread, known: Known): ThreadView {
    this.#program.run({ at: this.#tid, value: thread.tid });
    return view(this.#questions, this.#program, { thread, known });
  }

  [Symbol.dispose](): void {
    this.#program[Symbol.dispose]();
  }
}

/** Looks at all threads of a task at once, now; they are asked for one after the other. */
export class SweepingLook implements ThreadLook {
  readonly #sweep: Sweep;
  readonly #questions: Questions;
  readonly #indices: ReadonlyMap<number, number>;
  /** Where in a record what differs from thread to thread ends. */
  #common = 0;
  /** By what was told of threads without losses, and their timer slack. */
  readonly #known = new Map<bigint, Map<string, Scheduling>>();

  constructor({ threads }: FrozenTask) {
    let number: Field = { offset: 0, size: 4 };
    let asked: Questions | undefined;
    this.#sweep = new Sweep(threads.length, (program) => {
      number = program.field(4);
      asked = questions(program, program.contentOf(number), () => (this.#common = program.end));
    });
    this.#questions = asked as unknown as Questions;
    this.#indices = new Map(threads.map(({ tid }, index) => [tid, index]));
    for (const [tid, index] of this.#indices)
      this.#sweep.memory.writeInt32LE(tid, this.#sweep.place(index, number));
    this.#sweep.run();
  }

  at(thread: FrozenThread, known: Known): ThreadView {
    const answers = this.#sweep.select(this.#indices.get(thread.tid) as number);
    const { robustList, hasPending } = this.#questions;
    const { timerSlack } = known;
    const same = this.#known.get(timerSlack) ?? new Map<string, Scheduling>();
    this.#known.set(timerSlack, same);
    const text = answers.textFrom(this.#common);
    const scheduling = known.parentDeathSignal === 0 ? same.get(text) : undefined;
    if (scheduling !== undefined && !mayUsePorts(thread))
      return { robustList: robustList(answers), scheduling, hasPending: hasPending(answers) };
    const seen = view(this.#questions, answers, { thread, known });
    if (!seen.hasLosses) same.set(text, seen.scheduling);
    return seen;
  }
}
