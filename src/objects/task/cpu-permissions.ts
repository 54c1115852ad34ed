// Registers that a process may use only when it has asked for them, for their size: the tiles of AMX (ARCH_REQ_XCOMP_PERM, arch_prctl(2),
// Documentation/arch/x86/xstate.rst). The permission is kept; tiles that are in use are not (see cpu-state.ts).

import { errnoName } from "../../sys/errno.ts";
import type { Program } from "../../tracee/program.ts";
import type { Probe } from "../probe.ts";

const ARCH_GET_XCOMP_PERM = 0x1022;
const ARCH_REQ_XCOMP_PERM = 0x1023;
/** Components that must be asked for: XFEATURE_XTILEDATA. */
const ON_REQUEST = [18];

/** Asks a process for its permissions, as bits of components; 0n on kernels and processors without any. */
export function probeCpuPermissions(program: Program): Probe<bigint> {
  const bits = program.output(8, 8);
  const asked = program.call("arch_prctl", [ARCH_GET_XCOMP_PERM, bits], {
    label: "read which registers may be used",
    mayFail: true,
  });
  return (result) => {
    if (result.value(asked) < 0) return 0n;
    const allowed = result.bytes(bits, 8).readBigUInt64LE(0);
    return ON_REQUEST.reduce((sum, component) => sum | (allowed & (1n << BigInt(component))), 0n);
  };
}

/** Asks for them again. Returns a probe of what is refused, a sentence each. */
export function restoreCpuPermissions(program: Program, bits: bigint): Probe<string[]> {
  const calls = ON_REQUEST.filter((component) => (bits & (1n << BigInt(component))) !== 0n).map(
    (component) => {
      const label = `ask for registers of component ${component}`;
      return [
        label,
        program.call("arch_prctl", [ARCH_REQ_XCOMP_PERM, component], { label, mayFail: true }),
      ] as const;
    },
  );
  return (result) =>
    calls.flatMap(([label, call]) => {
      const error = result.value(call);
      return error < 0 ? [`cannot ${label}: arch_prctl: ${errnoName(-error)}`] : [];
    });
}
