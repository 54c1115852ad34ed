// A probe adds calls to a program that looks into a task, and later reads its answer out of the results.

import type { ProgramResult } from "../tracee/program.ts";

/** Reads what a probe asked for, once the program has run. */
export type Probe<T> = (result: ProgramResult) => T;
