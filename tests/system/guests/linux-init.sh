#!/bin/busybox sh
# Init of the Linux guest. On the kernel's command line:
#   agent=qemu-ga  runs the guest agent
#   agent=refusing runs it too, and it may not shut the guest down
#   agent=silent   holds the agent's port open and never answers, as an agent that hangs
#   button=ignore  does not react to the power button
# The button works before the agent is connected: who sees the agent may press.
export PATH=/bin:/sbin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
exec </dev/console >/dev/console 2>&1

for word in $(cat /proc/cmdline); do
    case $word in agent=* | button=*) eval "${word%%=*}=${word#*=}" ;; esac
done
for module in $(cat /lib/modules.order); do insmod "/lib/$module.ko"; done

# events are kept from the moment on at which the device is opened
for input in /sys/class/input/event*; do
    case $(cat "$input/device/name") in "Power Button") exec 3<"/dev/input/${input##*/}" ;; esac
done

for port in /sys/class/virtio-ports/*; do
    case $(cat "$port/name") in org.qemu.guest_agent.0) agent_port=/dev/${port##*/} ;; esac
done
case $agent in
    qemu-ga) qemu-ga -m virtio-serial -p "$agent_port" -t /run -d ;;
    refusing) qemu-ga -m virtio-serial -p "$agent_port" -t /run -b guest-shutdown -d ;;
    silent) sleep 2147483647 <>"$agent_port" & ;;
esac

[ "$button" = ignore ] && exec sleep 2147483647
dd bs=24 count=1 of=/dev/null <&3 2>/dev/null
poweroff -f
