// The machine code that Reprise puts into processes: all of it, instruction by instruction. code.test.ts
// disassembles every line with objdump and compares it with the text beside the bytes.
//
// 1. The interpreter runs a table of system calls (see ../../program.ts for the table's layout).
// 2. The stub makes and removes the work area from a spare corner of an executable page and puts the task right by itself.
// 3. The seed's entry: the first instructions of the process that restored tasks descend from.

import { SYSCALLS } from "../../../sys/syscalls.x86_64.ts";
import { SIGKILL, SIGSTOP, SIG_SETMASK, SIGSET_SIZE } from "../../../sys/abi/signal.ts";
import {
  PR_SET_PDEATHSIG,
  SYSCALL_DISPATCH_FILTER_ALLOW,
  SYSCALL_DISPATCH_FILTER_BLOCK,
  WALL,
} from "../../../sys/abi/sched.ts";

/** One line of assembler: its bytes, its text as objdump -M intel prints it, an optional label before it. */
export interface Instruction {
  readonly bytes: readonly number[];
  readonly text: string;
  readonly label?: string;
  /** The last byte is a distance to this label. */
  readonly target?: string;
}

/** Size in bytes of one table entry: u32 call number (or copy operation), u32 flags, six u64 arguments, expected result. */
export const ENTRY_SIZE = 64;
/** Offset of the first argument in an entry. */
export const ENTRY_ARGUMENTS = 8;
/** Entry flag: go on when the call fails. */
export const ENTRY_MAY_FAIL = 1;
/** Entry flag: any result but the expected one is a failure (a short read, say). */
export const ENTRY_EXPECT = 2;
/** Offset of the expected result in an entry. */
export const ENTRY_EXPECTED = 56;
/** Entry operations instead of a call number: copy a word, or a sign-extended half word, plus an offset. */
export const ENTRY_COPY_64 = 0xffff_ffff;
export const ENTRY_COPY_32 = 0xffff_fffe;
/** Entry operation: count a word down, and as long as it is not 0 then, go back so many bytes in the table. */
export const ENTRY_REPEAT = 0xffff_fffd;

/**
 * The loop over the table. r12 points to the entry, r13 to the place of its result, r14 to the end of the table.
 * It needs no stack and touches no floating point state. At `done` r12 tells which entry failed, or is r14.
 */
const LOOP: readonly Instruction[] = [
  { label: "loop", bytes: [0x4d, 0x39, 0xf4], text: "cmp r12,r14" },
  { bytes: [0x73, 0], text: "jae over", target: "over" },
  { bytes: [0x41, 0x8b, 0x04, 0x24], text: "mov eax,DWORD PTR [r12]" },
  { bytes: [0x85, 0xc0], text: "test eax,eax" },
  { bytes: [0x78, 0], text: "js copy", target: "copy" },
  { bytes: [0x49, 0x8b, 0x7c, 0x24, 0x08], text: "mov rdi,QWORD PTR [r12+0x8]" },
  { bytes: [0x49, 0x8b, 0x74, 0x24, 0x10], text: "mov rsi,QWORD PTR [r12+0x10]" },
  { bytes: [0x49, 0x8b, 0x54, 0x24, 0x18], text: "mov rdx,QWORD PTR [r12+0x18]" },
  { bytes: [0x4d, 0x8b, 0x54, 0x24, 0x20], text: "mov r10,QWORD PTR [r12+0x20]" },
  { bytes: [0x4d, 0x8b, 0x44, 0x24, 0x28], text: "mov r8,QWORD PTR [r12+0x28]" },
  { bytes: [0x4d, 0x8b, 0x4c, 0x24, 0x30], text: "mov r9,QWORD PTR [r12+0x30]" },
  { bytes: [0x0f, 0x05], text: "syscall" },
  { bytes: [0x49, 0x89, 0x45, 0x00], text: "mov QWORD PTR [r13+0x0],rax" },
  { bytes: [0x41, 0xf6, 0x44, 0x24, 0x04, ENTRY_EXPECT], text: "test BYTE PTR [r12+0x4],0x2" },
  { bytes: [0x74, 0], text: "je any", target: "any" },
  { bytes: [0x49, 0x3b, 0x44, 0x24, ENTRY_EXPECTED], text: "cmp rax,QWORD PTR [r12+0x38]" },
  { bytes: [0x75, 0], text: "jne done", target: "done" },
  {
    label: "any",
    bytes: [0x41, 0xf6, 0x44, 0x24, 0x04, ENTRY_MAY_FAIL],
    text: "test BYTE PTR [r12+0x4],0x1",
  },
  { bytes: [0x75, 0], text: "jne next", target: "next" },
  // Errors are -4095..-1: as unsigned numbers, all that is not below -4095.
  { bytes: [0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff], text: "cmp rax,0xfffffffffffff001" },
  { bytes: [0x73, 0], text: "jae done", target: "done" },
  { label: "next", bytes: [0x49, 0x83, 0xc5, 0x08], text: "add r13,0x8" },
  { bytes: [0x49, 0x83, 0xc4, ENTRY_SIZE], text: "add r12,0x40" },
  { bytes: [0xeb, 0], text: "jmp loop", target: "loop" },
  // On the way, as a short jump from the beginning does not reach so far.
  { label: "over", bytes: [0xeb, 0], text: "jmp done", target: "done" },
  // A copy moves an earlier result (or a word that the kernel wrote) into an argument of a later entry.
  { label: "copy", bytes: [0x49, 0x8b, 0x74, 0x24, 0x08], text: "mov rsi,QWORD PTR [r12+0x8]" },
  { bytes: [0x49, 0x8b, 0x7c, 0x24, 0x10], text: "mov rdi,QWORD PTR [r12+0x10]" },
  { bytes: [0xff, 0xc0], text: "inc eax" },
  { bytes: [0x75, 0], text: "jne half", target: "half" },
  { bytes: [0x48, 0x8b, 0x06], text: "mov rax,QWORD PTR [rsi]" },
  { bytes: [0xeb, 0], text: "jmp store", target: "store" },
  { label: "half", bytes: [0xff, 0xc0], text: "inc eax" },
  { bytes: [0x75, 0], text: "jne again", target: "again" },
  { bytes: [0x48, 0x63, 0x06], text: "movsxd rax,DWORD PTR [rsi]" },
  { label: "store", bytes: [0x49, 0x03, 0x44, 0x24, 0x18], text: "add rax,QWORD PTR [r12+0x18]" },
  { bytes: [0x48, 0x89, 0x07], text: "mov QWORD PTR [rdi],rax" },
  { bytes: [0x49, 0x89, 0x45, 0x00], text: "mov QWORD PTR [r13+0x0],rax" },
  { bytes: [0xeb, 0], text: "jmp next", target: "next" },
  // A repetition: of results there are 8 bytes an entry.
  { label: "again", bytes: [0x48, 0xff, 0x0e], text: "dec QWORD PTR [rsi]" },
  { bytes: [0x74, 0], text: "je next", target: "next" },
  { bytes: [0x49, 0x29, 0xfc], text: "sub r12,rdi" },
  { bytes: [0x48, 0xc1, 0xef, 0x03], text: "shr rdi,0x3" },
  { bytes: [0x49, 0x29, 0xfd], text: "sub r13,rdi" },
  { bytes: [0xeb, 0], text: "jmp next", target: "next" },
];

/**
 * The interpreter for another process. It ends by stopping itself: the tracer sees the SIGSTOP and swallows it. If the
 * tracer died meanwhile the SIGSTOP takes effect, and at SIGCONT the signal-return puts every register and the mask
 * right from the frame at rbp (a breakpoint instruction would have killed the process instead).
 */
export const INTERPRETER: readonly Instruction[] = [
  ...LOOP,
  { label: "done", bytes: [0xb8, ...imm32(SYSCALLS.gettid.nr)], text: "mov eax,0xba" },
  { bytes: [0x0f, 0x05], text: "syscall" },
  { bytes: [0x89, 0xc7], text: "mov edi,eax" },
  { bytes: [0xbe, ...imm32(SIGSTOP)], text: "mov esi,0x13" },
  { bytes: [0xb8, ...imm32(SYSCALLS.tkill.nr)], text: "mov eax,0xc8" },
  { bytes: [0x0f, 0x05], text: "syscall" },
  { label: "stopped", bytes: [0x48, 0x89, 0xec], text: "mov rsp,rbp" },
  { bytes: [0xb8, ...imm32(SYSCALLS.rt_sigreturn.nr)], text: "mov eax,0xf" },
  { label: "sigreturn", bytes: [0x0f, 0x05], text: "syscall" },
  { bytes: [0x0f, 0x0b], text: "ud2" },
  // The init of a new pid namespace: reaps everybody, and ends with the root task (its pid in r12) or with the last child.
  { label: "init", bytes: [0xb8, ...imm32(SYSCALLS.wait4.nr)], text: "mov eax,0x3d" },
  { bytes: [0xbf, ...imm32(-1)], text: "mov edi,0xffffffff" },
  { bytes: [0x48, 0x89, 0xe6], text: "mov rsi,rsp" },
  { bytes: [0xba, ...imm32(WALL)], text: "mov edx,0x40000000" },
  { bytes: [0x45, 0x31, 0xd2], text: "xor r10d,r10d" },
  { bytes: [0x0f, 0x05], text: "syscall" },
  { bytes: [0x44, 0x39, 0xe0], text: "cmp eax,r12d" },
  { bytes: [0x74, 0], text: "je end", target: "end" },
  { bytes: [0x85, 0xc0], text: "test eax,eax" },
  { bytes: [0x79, 0], text: "jns init", target: "init" },
  // As a shell tells it: the exit code, or 128 and the number of the signal.
  { label: "end", bytes: [0x0f, 0xb6, 0x7c, 0x24, 0x01], text: "movzx edi,BYTE PTR [rsp+0x1]" },
  { bytes: [0x8a, 0x04, 0x24], text: "mov al,BYTE PTR [rsp]" },
  { bytes: [0x24, 0x7f], text: "and al,0x7f" },
  { bytes: [0x74, 0], text: "je quit", target: "quit" },
  { bytes: [0x0c, 0x80], text: "or al,0x80" },
  { bytes: [0x0f, 0xb6, 0xf8], text: "movzx edi,al" },
  { label: "quit", bytes: [0xb8, ...imm32(SYSCALLS.exit_group.nr)], text: "mov eax,0xe7" },
  { bytes: [0x0f, 0x05], text: "syscall" },
  { bytes: [0x0f, 0x0b], text: "ud2" },
  // A lone system call for calls that have to be caught at their exit (the last munmap).
  { label: "single", bytes: [0x0f, 0x05], text: "syscall" },
  { bytes: [0x0f, 0x0b], text: "ud2" },
];

/** The interpreter as a C function f(table, results, end) for this very process: see ../../local.ts. */
export const LOCAL_INTERPRETER: readonly Instruction[] = [
  { bytes: [0x41, 0x54], text: "push r12" },
  { bytes: [0x41, 0x55], text: "push r13" },
  { bytes: [0x41, 0x56], text: "push r14" },
  { bytes: [0x49, 0x89, 0xfc], text: "mov r12,rdi" },
  { bytes: [0x49, 0x89, 0xf5], text: "mov r13,rsi" },
  { bytes: [0x49, 0x89, 0xd6], text: "mov r14,rdx" },
  ...LOOP,
  { label: "done", bytes: [0x4c, 0x89, 0xe0], text: "mov rax,r12" },
  { bytes: [0x41, 0x5e], text: "pop r14" },
  { bytes: [0x41, 0x5d], text: "pop r13" },
  { bytes: [0x41, 0x5c], text: "pop r12" },
  { bytes: [0xc3], text: "ret" },
];

/** A C function that does nothing. */
export const RETURN: readonly Instruction[] = [{ bytes: [0xc3], text: "ret" }];

/** cpuid as a C function f(leaf, subleaf, out): eax, ebx, ecx and edx are stored at `out`. */
export const CPUID: readonly Instruction[] = [
  { bytes: [0x53], text: "push rbx" },
  { bytes: [0x49, 0x89, 0xd0], text: "mov r8,rdx" },
  { bytes: [0x89, 0xf8], text: "mov eax,edi" },
  { bytes: [0x89, 0xf1], text: "mov ecx,esi" },
  { bytes: [0x0f, 0xa2], text: "cpuid" },
  { bytes: [0x41, 0x89, 0x00], text: "mov DWORD PTR [r8],eax" },
  { bytes: [0x41, 0x89, 0x58, 0x04], text: "mov DWORD PTR [r8+0x4],ebx" },
  { bytes: [0x41, 0x89, 0x48, 0x08], text: "mov DWORD PTR [r8+0x8],ecx" },
  { bytes: [0x41, 0x89, 0x50, 0x0c], text: "mov DWORD PTR [r8+0xc],edx" },
  { bytes: [0x5b], text: "pop rbx" },
  { bytes: [0xc3], text: "ret" },
];

/** Milliseconds that a child waits for the maps of its user namespace. */
const SPAWN_PATIENCE_MS = 5000;

/**
 * clone3 and execve as a C function f(clone_args, size, exec): with CLONE_VM the child shares the memory, and even the stack, of
 * the caller; so it writes to neither, and executes the program whose path, arguments and environment `exec` points to. With a fourth
 * word there it waits until the caller has taken the fifth away (or for five seconds), and becomes root then: in a new user
 * namespace nobody is root before the maps of ids are written, and execve would take its capabilities. Returns clone3's result; a
 * child that cannot execute ends with 127.
 */
export const SPAWN: readonly Instruction[] = [
  { bytes: [0x41, 0x54], text: "push r12" },
  { bytes: [0x49, 0x89, 0xd4], text: "mov r12,rdx" },
  { bytes: [0xb8, ...imm32(SYSCALLS.clone3.nr)], text: "mov eax,0x1b3" },
  { bytes: [0x0f, 0x05], text: "syscall" },
  { bytes: [0x48, 0x85, 0xc0], text: "test rax,rax" },
  { bytes: [0x75, 0], text: "jne parent", target: "parent" },
  { bytes: [0x41, 0xbd, ...imm32(SPAWN_PATIENCE_MS)], text: "mov r13d,0x1388" },
  { bytes: [0x49, 0x83, 0x7c, 0x24, 0x18, 0x00], text: "cmp QWORD PTR [r12+0x18],0x0" },
  { bytes: [0x74, 0], text: "je execute", target: "execute" },
  {
    label: "wait",
    bytes: [0x49, 0x83, 0x7c, 0x24, 0x20, 0x00],
    text: "cmp QWORD PTR [r12+0x20],0x0",
  },
  { bytes: [0x74, 0], text: "je root", target: "root" },
  { bytes: [0x31, 0xff], text: "xor edi,edi" },
  { bytes: [0x31, 0xf6], text: "xor esi,esi" },
  { bytes: [0xba, ...imm32(1)], text: "mov edx,0x1" },
  { bytes: [0xb8, ...imm32(7)], text: "mov eax,0x7" }, // poll
  { bytes: [0x0f, 0x05], text: "syscall" },
  { bytes: [0x41, 0xff, 0xcd], text: "dec r13d" },
  { bytes: [0x75, 0], text: "jne wait", target: "wait" },
  { label: "root", bytes: [0x31, 0xff], text: "xor edi,edi" },
  { bytes: [0x31, 0xf6], text: "xor esi,esi" },
  { bytes: [0x31, 0xd2], text: "xor edx,edx" },
  { bytes: [0xb8, ...imm32(SYSCALLS.setresgid.nr)], text: "mov eax,0x77" },
  { bytes: [0x0f, 0x05], text: "syscall" },
  { bytes: [0xb8, ...imm32(SYSCALLS.setresuid.nr)], text: "mov eax,0x75" },
  { bytes: [0x0f, 0x05], text: "syscall" },
  { label: "execute", bytes: [0x49, 0x8b, 0x3c, 0x24], text: "mov rdi,QWORD PTR [r12]" },
  { bytes: [0x49, 0x8b, 0x74, 0x24, 0x08], text: "mov rsi,QWORD PTR [r12+0x8]" },
  { bytes: [0x49, 0x8b, 0x54, 0x24, 0x10], text: "mov rdx,QWORD PTR [r12+0x10]" },
  { bytes: [0xb8, ...imm32(SYSCALLS.execve.nr)], text: "mov eax,0x3b" },
  { bytes: [0x0f, 0x05], text: "syscall" },
  { bytes: [0xbf, ...imm32(127)], text: "mov edi,0x7f" },
  { bytes: [0xb8, ...imm32(SYSCALLS.exit_group.nr)], text: "mov eax,0xe7" },
  { bytes: [0x0f, 0x05], text: "syscall" },
  { label: "parent", bytes: [0x41, 0x5c], text: "pop r12" },
  { bytes: [0xc3], text: "ret" },
];

/** What the stub takes away, and what it loads before it jumps back: the registers that its calls change. */
export interface StubReturn {
  /** The work area: removed by the stub on its way back. */
  readonly area: { readonly address: number; readonly size: number };
  readonly rax: bigint;
  readonly rcx: bigint;
  readonly rdx: bigint;
  readonly rsi: bigint;
  readonly rdi: bigint;
  readonly r8: bigint;
  readonly r9: bigint;
  readonly r10: bigint;
  readonly r11: bigint;
  readonly rip: bigint;
  /** The signal mask to set. */
  readonly mask: bigint;
}

/**
 * The stub. From its start it makes the system call that the tracer loaded into the registers (the mmap of the work area),
 * and takes the area away again; from `undo` it does only that. Then it sets the signal mask, loads the task's own registers
 * from constants in the code and jumps back. The tracer catches the task behind the one call that it wants; a task whose
 * tracer dies goes on through the rest as if nothing had happened. The stub needs no memory but its own bytes, and changes
 * no flags.
 */
export function stub(
  back: StubReturn,
  { call = "mmap", selector }: StubOptions = {},
): readonly Instruction[] {
  const maskDistance = STUB_MASK_DISTANCE + (selector === undefined ? 0 : STUB_SELECTOR_SIZE);
  return [
    ...(selector === undefined ? [] : storeByRcx(selector, SYSCALL_DISPATCH_FILTER_ALLOW)),
    { bytes: [0x0f, 0x05], text: "syscall" },
    // After a failed mmap this is no address, and the munmap fails, too.
    { bytes: [0x48, 0x89, 0xc7], text: "mov rdi,rax" },
    // The result of another call is no address either.
    { bytes: [0xeb, 0], text: "jmp unmap", target: call === "mmap" ? "unmap" : "undo" },
    {
      label: "undo",
      bytes: [0x48, 0xbf, ...imm64(BigInt(back.area.address))],
      text: "movabs AREA",
    },
    { label: "unmap", bytes: [0x48, 0xbe, ...imm64(BigInt(back.area.size))], text: "movabs SIZE" },
    { bytes: [0xb8, ...imm32(SYSCALLS.munmap.nr)], text: "mov eax,0xb" },
    { bytes: [0x0f, 0x05], text: "syscall" },
    { bytes: [0xb8, ...imm32(SYSCALLS.rt_sigprocmask.nr)], text: "mov eax,0xe" },
    { bytes: [0xbf, ...imm32(SIG_SETMASK)], text: "mov edi,0x2" },
    { bytes: [0x48, 0x8d, 0x35, ...imm32(maskDistance)], text: "lea rsi,[rip+mask]" },
    { bytes: [0xba, ...imm32(0)], text: "mov edx,0x0" },
    { bytes: [0x41, 0xba, ...imm32(SIGSET_SIZE)], text: "mov r10d,0x8" },
    { bytes: [0x0f, 0x05], text: "syscall" },
    // From here on there are no calls.
    ...(selector === undefined ? [] : storeByRcx(selector, SYSCALL_DISPATCH_FILTER_BLOCK)),
    { bytes: [0x48, 0xb8, ...imm64(back.rax)], text: "movabs rax" },
    { bytes: [0x48, 0xb9, ...imm64(back.rcx)], text: "movabs rcx" },
    { bytes: [0x48, 0xba, ...imm64(back.rdx)], text: "movabs rdx" },
    { bytes: [0x48, 0xbe, ...imm64(back.rsi)], text: "movabs rsi" },
    { bytes: [0x48, 0xbf, ...imm64(back.rdi)], text: "movabs rdi" },
    { bytes: [0x49, 0xb8, ...imm64(back.r8)], text: "movabs r8" },
    { bytes: [0x49, 0xb9, ...imm64(back.r9)], text: "movabs r9" },
    { bytes: [0x49, 0xba, ...imm64(back.r10)], text: "movabs r10" },
    { bytes: [0x49, 0xbb, ...imm64(back.r11)], text: "movabs r11" },
    { bytes: [0xff, 0x25, 0, 0, 0, 0], text: "jmp QWORD PTR [rip+0x0]" },
    { label: "back", bytes: imm64(back.rip), text: "(address)" },
    { label: "mask", bytes: imm64(back.mask), text: "(mask)" },
  ];
}

export interface StubOptions {
  readonly call?: "mmap" | "other";
  /** Address of the byte that lets calls through, where Syscall User Dispatch is on: it does so as long as there are calls to make. */
  readonly selector?: number | undefined;
}

/** The label is before the store itself: rcx may have the address already. */
function storeByRcx(selector: number, value: number): Instruction[] {
  const label = value === SYSCALL_DISPATCH_FILTER_BLOCK ? { label: "block" } : {};
  return [
    { bytes: [0x48, 0xb9, ...imm64(BigInt(selector))], text: "movabs SELECTOR" },
    { ...label, bytes: [0xc6, 0x01, value], text: `mov BYTE PTR [rcx],0x${value}` },
  ];
}

const STUB_SELECTOR_SIZE = 10 + 3;

/**
 * The way into the interpreter for a thread under Syscall User Dispatch whose calls are sent to its program: they are let through from here
 * on.
 */
export function allowingRelay(selector: number, to: number): readonly Instruction[] {
  return [
    ...storeByRcx(selector, SYSCALL_DISPATCH_FILTER_ALLOW),
    { bytes: [0xff, 0x25, 0, 0, 0, 0], text: "jmp QWORD PTR [rip+0x0]" },
    { bytes: imm64(BigInt(to)), text: "(address)" },
  ];
}

/** The way back, for the registers that the thread has for itself: calls are blocked again, and it makes none itself. */
export function blockingRelay(
  selector: number,
  { rax, rip }: Pick<StubReturn, "rax" | "rip">,
): readonly Instruction[] {
  return [
    {
      bytes: [0x48, 0xb8, ...imm64(BigInt(selector))],
      text: `movabs rax,0x${selector.toString(16)}`,
    },
    {
      label: "block",
      bytes: [0xc6, 0x00, SYSCALL_DISPATCH_FILTER_BLOCK],
      text: "mov BYTE PTR [rax],0x1",
    },
    { bytes: [0x48, 0xb8, ...imm64(rax)], text: `movabs rax,0x${rax.toString(16)}` },
    { bytes: [0xff, 0x25, 0, 0, 0, 0], text: "jmp QWORD PTR [rip+0x0]" },
    { bytes: imm64(rip), text: "(address)" },
  ];
}

/** From the end of the stub's lea to its mask: two instructions, a syscall, nine movabs, the jump, one word. */
const STUB_MASK_DISTANCE = 5 + 6 + 2 + 9 * 10 + 6 + 8;
/** Size in bytes of the stub. */
export const STUB_SIZE = 2 + 3 + 2 + 10 + 10 + 5 + 2 + 5 + 5 + 7 + STUB_MASK_DISTANCE + 8;
/** The same for a thread under Syscall User Dispatch. */
export const DISPATCHED_STUB_SIZE = STUB_SIZE + 2 * STUB_SELECTOR_SIZE;
/** Where in the stub the task only takes the area away. */
export const STUB_UNDO = 2 + 3 + 2;

/** Whether bytes start with a stub, whatever its constants: an engine that died has left it. */
export function isStub(bytes: Uint8Array): boolean {
  return [{}, { selector: 0 }].some((options) => isLike(stub(NO_RETURN, options), bytes));
}

function isLike(instructions: readonly Instruction[], bytes: Uint8Array): boolean {
  let at = 0;
  return instructions.every(({ bytes: own, text }) => {
    const fixed = text.startsWith("(") ? 0 : text.startsWith("movabs") ? 2 : own.length;
    const from = at;
    at += own.length;
    const jump = text.startsWith("jmp unmap") ? 1 : fixed; // the distance is filled in later
    return own.slice(0, jump).every((byte, index) => bytes[from + index] === byte);
  });
}

/** For who wants to know how the stub is laid out. */
export const NO_RETURN: StubReturn = {
  area: { address: 0, size: 0 },
  rax: 0n,
  rcx: 0n,
  rdx: 0n,
  rsi: 0n,
  rdi: 0n,
  r8: 0n,
  r9: 0n,
  r10: 0n,
  r11: 0n,
  rip: 0n,
  mask: 0n,
};

/**
 * The entry of a seed that is another's child: it waits for the tracer, with whom it then dies (PTRACE_O_EXITKILL). Until then a
 * pidfd of the engine, which it inherits, tells when that has died.
 */
export function siblingEntry(pidfd: number): readonly Instruction[] {
  return [
    { bytes: [0x48, 0x8d, 0x3d, ...imm32(26)], text: "lea rdi,[rip+0x1a]" },
    { bytes: [0xbe, ...imm32(1)], text: "mov esi,0x1" },
    { bytes: [0xba, ...imm32(-1)], text: "mov edx,0xffffffff" },
    { bytes: [0xb8, ...imm32(7)], text: "mov eax,0x7" }, // poll
    { bytes: [0x0f, 0x05], text: "syscall" },
    { bytes: [0xb8, ...imm32(SYSCALLS.exit_group.nr)], text: "mov eax,0xe7" },
    { bytes: [0x31, 0xff], text: "xor edi,edi" },
    { bytes: [0x0f, 0x05], text: "syscall" },
    // struct pollfd: POLLIN
    { bytes: [...imm32(pidfd), 1, 0, 0, 0], text: "(pollfd)" },
  ];
}

/**
 * The seed's entry: dies with the engine (PR_SET_PDEATHSIG; and at once if the engine was gone before that), then waits
 * for the tracer.
 */
export function seedEntry(enginePid: number): readonly Instruction[] {
  return [
    { bytes: [0xb8, ...imm32(SYSCALLS.prctl.nr)], text: "mov eax,0x9d" },
    { bytes: [0xbf, ...imm32(PR_SET_PDEATHSIG)], text: "mov edi,0x1" },
    { bytes: [0xbe, ...imm32(SIGKILL)], text: "mov esi,0x9" },
    { bytes: [0x0f, 0x05], text: "syscall" },
    { bytes: [0xb8, ...imm32(110)], text: "mov eax,0x6e" }, // getppid
    { bytes: [0x0f, 0x05], text: "syscall" },
    { bytes: [0x3d, ...imm32(enginePid)], text: "cmp eax,ENGINE" },
    { bytes: [0x75, 0], text: "jne gone", target: "gone" },
    { label: "wait", bytes: [0xb8, ...imm32(SYSCALLS.pause.nr)], text: "mov eax,0x22" },
    { bytes: [0x0f, 0x05], text: "syscall" },
    { bytes: [0xeb, 0], text: "jmp wait", target: "wait" },
    { label: "gone", bytes: [0xb8, ...imm32(SYSCALLS.exit_group.nr)], text: "mov eax,0xe7" },
    { bytes: [0x31, 0xff], text: "xor edi,edi" },
    { bytes: [0x0f, 0x05], text: "syscall" },
  ];
}

/** Assembled code: its bytes and where its labels are. */
export interface Code {
  readonly bytes: Buffer;
  readonly labels: Readonly<Record<string, number>>;
}

/** Puts instructions together and fills in the distances of short jumps. */
export function assemble(instructions: readonly Instruction[]): Code {
  const labels: Record<string, number> = {};
  let size = 0;
  for (const instruction of instructions) {
    if (instruction.label !== undefined) labels[instruction.label] = size;
    size += instruction.bytes.length;
  }
  const bytes = Buffer.alloc(size);
  let at = 0;
  for (const instruction of instructions) {
    bytes.set(instruction.bytes, at);
    at += instruction.bytes.length;
    if (instruction.target !== undefined)
      bytes.writeInt8((labels[instruction.target] ?? 0) - at, at - 1);
  }
  return { bytes, labels };
}

function imm32(value: number): number[] {
  return [value & 0xff, (value >> 8) & 0xff, (value >> 16) & 0xff, (value >> 24) & 0xff];
}

function imm64(value: bigint): number[] {
  word[0] = BigInt.asUintN(64, value);
  return [...wordBytes];
}

const word = new BigUint64Array(1);
const wordBytes = new Uint8Array(word.buffer);
