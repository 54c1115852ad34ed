// A thread that has just been stopped: its registers as they have to be when it goes on, or comes back.

import { RepriseError } from "../errors.ts";
import { collectRseq } from "../objects/task/thread-registrations.ts";
import type { FrozenThread } from "../objects/task/task.ts";
import { readMemory } from "../sys/memory.ts";
import { USER_CS_64, withoutSpuriousEintr } from "../tracee/arch/x86_64/registers.ts";
import { isRestarted, restartedCall, type ReadTask } from "../tracee/arch/x86_64/restarted-call.ts";
import { standsInLeftCode } from "../tracee/injection.ts";
import type { Tracee } from "../tracee/tracee.ts";

/** What a thread was about when it was stopped. @throws RepriseError UNSUPPORTED for what cannot be saved of it */
export function stoppedThread(tracee: Tracee): Pick<FrozenThread, "stopped" | "rseq"> {
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
  if (tracee.syscallUserDispatch()) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot dump pid ${tracee.leader}: thread ${tracee.tid} uses Syscall User Dispatch`,
      {
        pid: tracee.leader,
        hint: "Programs like Wine use it to catch system calls; it cannot be saved yet.",
      },
    );
  }
  if (standsInLeftCode(tracee.leader, regs.getNumber("rip"))) {
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
    stopped: { tracee, regs, xstate: tracee.extendedState(), mask: tracee.signalMask() },
    rseq: rseq.entry,
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
