"""vmagentctl: vmagentd on the command line.

It talks to the daemon by the contract (`vmagent.v1`) alone; it needs neither libvirt nor the
daemon's package, and runs wherever the socket can be reached.

    __main__, leaving       the process: environment, Ctrl-C, exit code
    app, options            the commands and their options
    commands                what they do
    verbs, operate          what is done to VMs, several side by side
    operations              what was asked of VMs, and how it went
    follow                  a watch that survives the daemon
    pages                   answers that come in pages, made whole
    channel, failures       the way to the daemon, and what went wrong
    lines, vms, host, watching      answers as text
    words, screen           values of the contract as words; the terminal
    durations, moments      what options say of time
"""
