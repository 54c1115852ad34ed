// The status word of wait4 as a value with a name for each case (wait(2), ptrace(2)).

import { SIGTRAP, signalName } from "../sys/abi/signal.ts";
import { PTRACE_EVENT_STOP } from "../sys/abi/ptrace.ts";

export type WaitStatus =
  | { readonly kind: "exited"; readonly code: number }
  | { readonly kind: "killed"; readonly signal: number }
  /** A stop between a signal and its delivery: the tracer decides what becomes of it. */
  | { readonly kind: "signal"; readonly signal: number }
  /** PTRACE_EVENT_STOP: by PTRACE_INTERRUPT (SIGTRAP), a new child, or a group stop (its signal). */
  | { readonly kind: "event-stop"; readonly signal: number }
  | { readonly kind: "event"; readonly event: number }
  | { readonly kind: "syscall" };

/** Reads a status word; PTRACE_O_TRACESYSGOOD tells system call stops from SIGTRAPs. */
export function waitStatus(status: number): WaitStatus {
  const low = status & 0x7f;
  if (low === 0) return { kind: "exited", code: (status >> 8) & 0xff };
  if (low !== 0x7f) return { kind: "killed", signal: low };
  const signal = (status >> 8) & 0xff;
  const event = status >> 16;
  if (event === PTRACE_EVENT_STOP) return { kind: "event-stop", signal };
  if (event !== 0) return { kind: "event", event };
  return signal === (SIGTRAP | 0x80) ? { kind: "syscall" } : { kind: "signal", signal };
}

/** For messages: "exited with 1", "was killed by SIGKILL", … */
export function describeWaitStatus(status: WaitStatus): string {
  switch (status.kind) {
    case "exited":
      return `exited with ${status.code}`;
    case "killed":
      return `was killed by ${signalName(status.signal)}`;
    case "signal":
      return `stopped with ${signalName(status.signal)}`;
    case "event-stop":
      return `stopped (event stop, ${signalName(status.signal)})`;
    case "event":
      return `stopped at ptrace event ${status.event}`;
    case "syscall":
      return "stopped at a system call";
  }
}
