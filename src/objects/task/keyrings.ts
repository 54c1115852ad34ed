// Keyrings (keyrings(7)): keys that a process keeps in the kernel. Nothing gives back a key with its rights and its limits, so no
// image holds them, and that is told. An empty session keyring, as container runtimes make one for each container, is no loss.

import { log } from "../../log.ts";
import {
  KEYCTL_GET_KEYRING_ID,
  KEYCTL_READ,
  KEY_SPEC_PROCESS_KEYRING,
  KEY_SPEC_SESSION_KEYRING,
  KEY_SPEC_THREAD_KEYRING,
  KEY_SPEC_USER_SESSION_KEYRING,
} from "../../sys/abi/keys.ts";
import { trySyscall } from "../../sys/ffi.ts";
import type { Program, ProgramResult, Ref } from "../../tracee/program.ts";
import type { Probe } from "../probe.ts";

const KEYRINGS = [
  ["thread", KEY_SPEC_THREAD_KEYRING],
  ["process", KEY_SPEC_PROCESS_KEYRING],
  ["session", KEY_SPEC_SESSION_KEYRING],
] as const;

/** Asks threads that are not leaders for their own keyrings, and tells of those whose keys will be lost. */
export function tellThreadKeyring(program: Program): (result: ProgramResult, tid: number) => void {
  const asked = ask(program, "thread", KEY_SPEC_THREAD_KEYRING);
  return (result, tid) => {
    const number = result.value(asked.id);
    if (number > 0 && result.value(asked.size) > 0)
      log.loss(`thread ${tid}: the keys in its keyring (${number}) are not saved`);
  };
}

/** Asks the leader for its keyrings, and tells of those whose keys will be lost. */
export function tellKeyrings(program: Program, { pid }: { readonly pid: number }): Probe<void> {
  const asked = KEYRINGS.map(([name, spec]) => ({ name, ...ask(program, name, spec) }));
  // Who has no session keyring is told the one of its user, which stays.
  const ofUser = program.call(
    "keyctl",
    [KEYCTL_GET_KEYRING_ID, KEY_SPEC_USER_SESSION_KEYRING, 0, 0, 0],
    { label: "look for the user's keyring", mayFail: true },
  );
  return (result) => {
    for (const { name, id, size } of asked) {
      const number = result.value(id);
      // A restored process has the engine's session keyring.
      if (number <= 0 || result.value(size) <= 0 || number === ownSession()) continue;
      if (number === result.value(ofUser)) continue;
      log.loss(`pid ${pid}: the keys in its ${name} keyring (${number}) are not saved`);
    }
  };
}

function ask(
  program: Program,
  name: string,
  spec: number,
): { readonly id: Ref; readonly size: Ref } {
  const label = `look for the ${name} keyring`;
  const id = program.call("keyctl", [KEYCTL_GET_KEYRING_ID, spec, 0, 0, 0], {
    label,
    mayFail: true,
  });
  // Without a buffer it tells the size of its keys' numbers.
  const size = program.call("keyctl", [KEYCTL_READ, id, 0, 0, 0], { label, mayFail: true });
  return { id, size };
}

function ownSession(): number {
  return trySyscall("keyctl", KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0, 0, 0);
}
