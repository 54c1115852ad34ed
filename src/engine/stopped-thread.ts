// A thread that has just been stopped: its registers as they have to be when it goes on, or comes back.

import { RepriseError } from "../errors.ts";
import { collectRseq } from "../objects/task/thread-registrations.ts";
import type { FrozenThread } from "../objects/task/task.ts";
import { readMemory } from "../sys/memory.ts";
import { USER_CS_64, withoutSpuriousEintr } from "../tracee/arch/x86_64/registers.ts";
import { isRestarted, restartedCall, type ReadTask } from "../tracee/arch/x86_64/restarted-call.ts";
import type { LeftCode, StoppedThread } from "../tracee/injection.ts";
import type { DispatchConfiguration, Tracee } from "../tracee/tracee.ts";
import {
  PR_SYS_DISPATCH_EXCLUSIVE_ON,
  PR_SYS_DISPATCH_INCLUSIVE_ON,
  SYSCALL_DISPATCH_FILTER_ALLOW,
  SYSCALL_DISPATCH_FILTER_BLOCK,
} from "../sys/abi/sched.ts";

/** What a thread was about when it was stopped. @throws RepriseError UNSUPPORTED for what cannot be saved of it */
export function stoppedThread(
  tracee: Tracee,
  left: LeftCode,
): Pick<FrozenThread, "stopped" | "rseq"> {
  const regs = withoutSpuriousEintr(tracee.registers());
  if (regs.get("cs") !== USER_CS_64) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot dump pid ${tracee.leader}: it is a 32-bit program`,
      {
        pid: tracee.leader,
        hint: "Only 64-bit programs can be saved.",
      },
    );
  }
  if (left.holds(regs.getNumber("rip"))) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot dump pid ${tracee.leader}: thread ${tracee.tid} stands where an engine left it that was killed`,
      {
        pid: tracee.leader,
        hint: `Continue the process (kill -CONT ${tracee.leader}), and dump it then.`,
      },
    );
  }
  if (isRestarted(regs)) {
    // The thread itself goes on with what the kernel knows, a restored one makes the call again.
    regs.set("orig_rax", restartedCall(regs, readerOf(tracee)));
  }
  const rseq = collectRseq(tracee, regs.getNumber("rip"));
  // Any call that we make in the thread ends its restartable sequence, so it goes on at the sequence's abort address, as
  // after any interruption.
  if (rseq.abortAddress !== undefined) regs.set("rip", rseq.abortAddress);
  return {
    stopped: {
      tracee,
      regs,
      xstate: tracee.extendedState(),
      mask: tracee.signalMask(),
      ...dispatchOf(tracee),
    },
    rseq: rseq.entry,
  };
}

/** Syscall User Dispatch, as Wine uses it: whether it is on, and the byte that says whether calls are sent to the program. */
function dispatchOf(tracee: Tracee): Pick<StoppedThread, "dispatch" | "selector"> {
  const read = tracee.syscallUserDispatch();
  if (read === undefined) return {};
  const dispatch = asWasSet(read);
  const selector = Number(dispatch.selector);
  const refused = (what: string): RepriseError =>
    new RepriseError(
      "UNSUPPORTED",
      `cannot dump pid ${tracee.leader}: thread ${tracee.tid} uses Syscall User Dispatch ${what}`,
      { pid: tracee.leader, hint: "No call can be made for such a thread, so it cannot be saved." },
    );
  if (dispatch.mode !== BigInt(PR_SYS_DISPATCH_EXCLUSIVE_ON)) {
    // Our code is not where its calls are blocked.
    return { dispatch };
  }
  if (selector === 0) throw refused("without a selector");
  const byte = readerOf(tracee)(selector, 1)?.[0];
  if (byte === SYSCALL_DISPATCH_FILTER_ALLOW) return { dispatch };
  if (byte !== SYSCALL_DISPATCH_FILTER_BLOCK) throw refused("and its selector is unsound");
  return { dispatch, selector };
}

/** A range of calls that are blocked is kept as that of all others, whose length wraps. */
function asWasSet(read: DispatchConfiguration): DispatchConfiguration {
  const { offset, length, selector } = read;
  if (length < 1n << 63n) return read;
  return {
    mode: BigInt(PR_SYS_DISPATCH_INCLUSIVE_ON),
    selector,
    offset: BigInt.asUintN(64, offset + length),
    length: BigInt.asUintN(64, -length),
  };
}

function readerOf({ leader }: Tracee): ReadTask {
  return (address, length) => {
    const bytes = Buffer.alloc(length);
    try {
      readMemory(leader, [{ address, length }], bytes);
      return bytes;
    } catch {
      return undefined; // nothing is mapped there
    }
  };
}
