// Going once through the code that a dump runs while tasks stand still: V8 loads and compiles a function when it is called first,
// and half of the time that a small tree is frozen was spent with that. Nothing is kept of what is done here.

import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import { encode } from "../images/codec.ts";
import { encodePagemap, PE_PRESENT } from "../images/pagemap.ts";
import { CoreEntryMarch, FdTypes } from "../images/schema/messages.generated.ts";
import { NO_OWNER } from "../objects/files/owner.ts";
import { EMPTY_MM } from "../objects/memory/mm.ts";
import { prepareWindows, scanPages } from "../objects/memory/pages.ts";
import { collectVmas } from "../objects/memory/vma.ts";
import { engineTraits } from "../objects/task/landlock.ts";
import { hostLsm } from "../objects/task/lsm.ts";
import { identifyClocks } from "../objects/namespaces/time.ts";
import { cpuStateEntry } from "../objects/task/cpu-state.ts";
import { collectLimits } from "../objects/task/limits.ts";
import { collectScheduling } from "../objects/task/scheduling.ts";
import { readBuildId } from "../proc/build-id.ts";
import { readFdNumbers } from "../proc/fd.ts";
import { readFdInfo } from "../proc/fdinfo.ts";
import { readFdStat, readLinkedFile } from "../proc/links.ts";
import { readSmaps } from "../proc/smaps.ts";
import { readStatIfAlive } from "../proc/stat.ts";
import { readStatus } from "../proc/status.ts";
import { REGISTERS_SIZE, Registers } from "../tracee/arch/x86_64/registers.ts";
import { XCR0 } from "../tracee/arch/x86_64/xstate.ts";
import { signalFrame } from "../tracee/arch/x86_64/sigframe.ts";
import { Program } from "../tracee/program.ts";
import { Tracee } from "../tracee/tracee.ts";
import { asRepriseError } from "./system-error.ts";

/** What is looked at of a task that has a thousand areas. */
const ENOUGH_AREAS = 64;
/** Extended state of a thread on a processor with AVX-512, and the components that it has. */
const XSTATE_SIZE = 2696;
const X87_TO_AVX512 = 0xe7n;

/** Does with the engine itself what will be done with stopped tasks: describing, encoding, laying out programs. */
export function rehearse(): void {
  identifyClocks();
  engineTraits();
  prepareWindows();
  hostLsm();
  encodeFiles();
  encodeMemory();
  encodeThread();
  layOutProgram();
}

/** Looks at the running root task as at a stopped one; where it was looked at ahead, this has been done. */
export function rehearseLook(root: number): void {
  const task = { pid: root };
  try {
    const some = readSmaps(root).slice(0, ENOUGH_AREAS);
    scanPages(
      task,
      collectVmas(task, some, () => ({ id: 0, memfd: false })),
    );
    readStatIfAlive(root);
    readLinkedFile(root, "exe");
    readBuildId(`/proc/${root}/exe`);
    for (const fd of readFdNumbers(root).slice(0, 1)) {
      readFdStat(root, fd);
      readFdInfo({ pid: root, fd });
    }
  } catch (thrown) {
    // The dump will meet the same and tell it. A process whose first thread has ended has no memory to look at, for one.
    const error = asRepriseError(thrown, `look at pid ${root}`);
    if (!(error instanceof RepriseError)) throw error;
    log.debug(`rehearsal: ${error.message}`);
  }
}

/** The small images: of descriptors, of what is where, of the tree. */
function encodeFiles(): void {
  const type = FdTypes.REG;
  encode("file_entry", {
    type,
    id: 0,
    reg: { id: 0, flags: 0, pos: 0n, fown: NO_OWNER, name: "", mode: 0, size: 0 },
  });
  encode("fdinfo_entry", { id: 0, flags: 0, type, fd: 0 });
  encode("fs_entry", { cwd_id: 0, root_id: 0, umask: 0 });
  encode("task_kobj_ids_entry", { vm_id: 0, files_id: 0, fs_id: 0, sighand_id: 0 });
  encode("pstree_entry", { pid: 0, ppid: 0, pgid: 0, sid: 0, threads: [0] });
  encodePagemap("pagemap", { pagesId: 0, runs: [{ vaddr: 0, pages: 1, flags: PE_PRESENT }] });
}

function encodeMemory(): void {
  const vma = { start: 0, end: 0, pgoff: 0, shmid: 0, prot: 0, flags: 0, status: 0, fd: 0 };
  encode("mm_entry", { ...EMPTY_MM, mm_saved_auxv: [0n], vmas: [vma] });
}

function encodeThread(): void {
  const { pid } = process;
  const regs = new Registers(Buffer.alloc(REGISTERS_SIZE));
  const tracee = new Tracee(pid, pid, { stops: 0, remoteCalls: 0 });
  const xstate = Buffer.alloc(XSTATE_SIZE);
  xstate.writeBigUInt64LE(X87_TO_AVX512, XCR0);
  const status = readStatus(pid);
  encode("core_entry", {
    mtype: CoreEntryMarch.X86_64,
    thread_info: cpuStateEntry({ tracee, regs, xstate, mask: 0n }, regs, 0n),
    tc: {
      task_state: 0,
      exit_code: 0,
      personality: 0,
      flags: 0,
      blk_sigset: 0n,
      comm: "",
      rlimits: { rlimits: collectLimits(pid) },
    },
    thread_core: {
      futex_rla: 0n,
      futex_rla_len: 0,
      ...collectScheduling(pid, 0n),
      creds: {
        uid: status.uid.real,
        gid: 0,
        euid: 0,
        egid: 0,
        suid: 0,
        sgid: 0,
        fsuid: 0,
        fsgid: 0,
        cap_inh: [0, 0],
        cap_prm: [0, 0],
        cap_eff: [0, 0],
        cap_bnd: [0, 0],
        secbits: 0,
      },
    },
  });
  signalFrame(0, regs, xstate, 0n);
}

function layOutProgram(): void {
  const program = new Program();
  const output = program.output(8);
  const ref = program.call("getpid", [], { label: "rehearse" });
  program.call("kill", [ref, 0], { mayFail: true });
  program.call("rt_sigpending", [output, 8]);
  program.layout(0x1000);
}
