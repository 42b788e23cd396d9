/* A whole guest in a few hundred bytes: real-mode code that is the firmware ROM itself.

   For QEMU's machine "pc" with a CPU that has no local APIC (486), so that the 8259 reaches the CPU
   without further ado. It sleeps in HLT and meets the world as an ACPI system does: the power button
   raises the SCI on IRQ 9, PM1_CNT powers off or suspends.

   The symbols given on the command line of as:
     PRESSES    power off at this press of the button; 0: never look at it
     GRACE      ticks (10 ms) between that press and the power-off
     ACT        what it does by itself, once: 0 nothing, 1 power off, 2 reset, 3 panic,
                4 suspend to RAM, 5 triple fault
     ACT_AFTER  ticks between boot and that
   "Once" is once per QEMU process: RAM survives a reset and a wake-up, and with it ACTED. After
   that the guest lives on and obeys its button. */

        .equ PM1_STS, 0x600
        .equ PM1_EN,  0x602
        .equ PM1_CNT, 0x604
        .equ PWRBTN,  1 << 8            /* in PM1_STS and PM1_EN */
        .equ WAKE,    1 << 15           /* in PM1_STS */
        .equ S5,      1 << 13           /* in PM1_CNT: SLP_EN, SLP_TYP 0 */
        .equ S3,      1 << 13 | 1 << 10 /* SLP_EN, SLP_TYP 1 */

        .equ TICKS,   0x500             /* word, counts up while the timer runs */
        .equ PRESSED, 0x502             /* byte, presses of the button */
        .equ ACTED,   0x503             /* byte, 1 after the guest's own act */

.macro  set_port port, value            /* a byte to a port below 256 */
        movb    $\value, %al
        outb    %al, $\port
.endm

.macro  set_word port, value            /* a word to any port */
        movw    $\port, %dx
        movw    $\value, %ax
        outw    %ax, %dx
.endm

.macro  set_pci register, value         /* four bytes of PCI configuration */
        movw    $0xcf8, %dx
        movl    $\register, %eax
        outl    %eax, %dx
        movw    $0xcfc, %dx
        movl    $\value, %eax
        outl    %eax, %dx
.endm

        .code16
        .globl  _start
_start: cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        movw    $0x7000, %sp
        movw    %ax, TICKS
        movb    %al, PRESSED

        set_pci 0x80000b40, PM1_STS + 1 /* PIIX4 power management: I/O base ... */
        set_pci 0x80000b80, 1           /* ... and enable */

        set_port 0x20, 0x11             /* both 8259s: vectors 0x20 and 0x28, cascade on 2 */
        set_port 0x21, 0x20
        set_port 0x21, 4
        set_port 0x21, 1
        set_port 0xa0, 0x11
        set_port 0xa1, 0x28
        set_port 0xa1, 2
        set_port 0xa1, 1
        set_port 0x21, 0xfb             /* let through: the cascade, IRQ 9 */
        set_port 0xa1, 0xfd
        movw    $timer, 4 * 0x20
        movw    %cs, 4 * 0x20 + 2
        movw    $sci, 4 * 0x29
        movw    %cs, 4 * 0x29 + 2

        /* A press before this point is kept by the hardware and seen as soon as the button is
           enabled: none is lost. Only a wake-up is cleared, QEMU reports it as a press too. */
        movw    $PM1_STS, %dx
        inw     %dx, %ax
        testw   $WAKE, %ax
        jz      1f
        outw    %ax, %dx
1:
.if PRESSES
        set_word PM1_EN, PWRBTN
.endif

.if ACT
        cmpb    $1, ACTED
        je      live
        call    start_timer
await:
.if PRESSES
        cmpb    $PRESSES, PRESSED
        jae     obey
.endif
        cmpw    $ACT_AFTER, TICKS
        jae     act
        sti
        hlt
        cli
        jmp     await

act:    movb    $1, ACTED
.if ACT == 1
        jmp     off
.elseif ACT == 2
        set_port 0x64, 0xfe             /* the keyboard controller's reset line */
.elseif ACT == 3
        movw    $0x505, %dx             /* pvpanic: the guest has panicked */
        movb    $1, %al
        outb    %al, %dx
.elseif ACT == 4
        set_word PM1_CNT, S3
.elseif ACT == 5
        lidtl   %cs:no_vectors
        int3
.endif
        jmp     hang
.endif

live:   set_port 0x21, 0xfb             /* no timer: an idle guest costs nothing */
idle:
.if PRESSES
        cmpb    $PRESSES, PRESSED
        jae     obey
.endif
        sti                             /* takes effect after hlt: no interrupt slips in between */
        hlt
        cli
        jmp     idle

obey:
.if GRACE
        call    start_timer
1:      sti
        hlt
        cli
        cmpw    $GRACE, TICKS
        jb      1b
.endif
off:    set_word PM1_CNT, S5
hang:   cli
        hlt
        jmp     hang

start_timer:
        movw    $0, TICKS
        set_port 0x43, 0x34             /* channel 0, rate generator: 1193182 Hz / 11932 */
        set_port 0x40, 11932 & 0xff
        set_port 0x40, 11932 >> 8
        set_port 0x21, 0xfa
        ret

timer:  pushw   %ax
        incw    TICKS
        set_port 0x20, 0x20
        popw    %ax
        iret

sci:    pushw   %ax
        pushw   %dx
        movw    $PM1_STS, %dx
        inw     %dx, %ax
        outw    %ax, %dx                /* a one clears the bit */
        testw   $PWRBTN, %ax
        jz      1f
        incb    PRESSED
1:      set_port 0xa0, 0x20
        set_port 0x20, 0x20
        popw    %dx
        popw    %ax
        iret

no_vectors:
        .word   0, 0, 0

        .org    0xfff0                  /* where the CPU starts */
        ljmp    $0xf000, $_start
        .org    0x10000
